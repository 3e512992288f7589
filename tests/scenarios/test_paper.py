"""The paper's benchmarks from tiny copies in the data sets' own file formats."""

import bz2
import os
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from avalanche_cetl import CICNN, CETLStrategy, CoupledModel, ModuleEncoder, paper_benchmark
from avalanche_cetl.scenarios.paper import NAMES, SHARED_8

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
STL = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
ROWS = 40
DRAW = np.random.default_rng(0)


def _pixels(*shape):
    return DRAW.integers(0, 256, shape, dtype=np.uint8)


def _idx(path, array):
    magic = {1: 2049, 3: 2051}[array.ndim]
    header = np.array([magic, *array.shape], dtype=">i4").tobytes()
    path.write_bytes(header + array.tobytes())


def write_mnist(root):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, rows in (("train", ROWS), ("t10k", 20)):
        _idx(raw / f"{part}-images-idx3-ubyte", _pixels(rows, 28, 28))
        _idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(rows) % 10).astype(np.uint8))


def write_usps(root):
    (root / "USPS").mkdir()
    for name, rows in (("usps.bz2", ROWS), ("usps.t.bz2", 20)):
        lines = [
            f"{i % 10 + 1} " + " ".join(f"{j + 1}:{v:.4f}" for j, v in enumerate(values))
            for i, values in enumerate(DRAW.uniform(-1, 1, (rows, 256)))
        ]
        (root / "USPS" / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def write_svhn(root):
    for part, rows in (("train", ROWS), ("test", 20)):
        # SVHN calls a nought 10.
        labels = np.where(np.arange(rows) % 10 == 0, 10, np.arange(rows) % 10)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": _pixels(32, 32, 3, rows), "y": labels})


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(STL) + "\n")
    for part, rows in (("train", ROWS), ("test", 20)):
        (folder / f"{part}_X.bin").write_bytes(_pixels(rows, 3, 96, 96).tobytes())
        labels = (np.arange(rows) % 10 + 1).astype(np.uint8)
        (folder / f"{part}_y.bin").write_bytes(labels.tobytes())
    (folder / "unlabeled_X.bin").write_bytes(_pixels(2, 3, 96, 96).tobytes())
    (folder / "fold_indices.txt").write_text("0 1\n" * 10)


def write_cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        rows = 30
        batch = {"data": _pixels(rows, 3072), "labels": [i % 10 for i in range(rows)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR}))


def write_cifar10_folder(root):
    for part, rows in (("train", 50), ("test", 20)):
        for i in range(rows):
            place = root / "cifar10-jpeg" / part / CIFAR[i % 10]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels(32, 32, 3)).save(place / f"{i:04}.jpg")


def write_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, rows in (("train", 200), ("test", 100)):
        batch = {"data": _pixels(rows, 3072), "fine_labels": [i % 100 for i in range(rows)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"fine_label_names": [f"class {i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))


WRITERS = {
    "MN": write_mnist, "US": write_usps, "SV": write_svhn, "ST": write_stl10, "CI": write_cifar10,
    "STL": write_stl10, "CIFAR-10": write_cifar10, "CIFAR-100": write_cifar100, "digits": None,
}  # fmt: skip
NEEDS = {
    "CIFAR-10-s": ["CI"], "STL-10": ["ST"], "CIFAR-10": ["CI"], "CIFAR-100": ["CIFAR-100"],
    "digits-mini": [],
}  # fmt: skip
SHAPES = {"MN-US": (1, 28, 28), "US-MN": (1, 28, 28), "SV-MN": (1, 32, 32), "MN-SV": (1, 32, 32),
          "STL-10": (3, 96, 96), "digits-mini": (1, 8, 8)}  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch):
    """Our tiny files have other checksums than the real ones."""
    for module in ("cifar", "stl10", "svhn"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity",
            lambda path, md5=None: os.path.isfile(path),
        )


def one_round(benchmark, shape, classes):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
                              torch.nn.Linear(4 * shape[0], 4))  # fmt: skip
    source = ModuleEncoder(net, "2", input_shape=shape)
    model = CoupledModel.build(source, CICNN(classes, shape, width=0.05), shape)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    strategy = CETLStrategy(
        model=model,
        optimizer=optimizer,
        preset="paper",
        variant="e",
        train_mb_size=64,
        evaluator=None,
    )
    strategy.train(benchmark.train_stream)
    return strategy.round_losses


@pytest.mark.parametrize("name", NAMES)
def test_every_name_loads_native_files_and_trains_one_round(tmp_path, unchecked, few_digits, name):
    for part in NEEDS.get(name) or [p for p in name.split("-") if p in WRITERS and p != "digits"]:
        WRITERS[part](tmp_path)
    benchmark = paper_benchmark(name, tmp_path)
    shape = SHAPES.get(name, (3, 32, 32))
    classes = {"CIFAR-100": 100, "ST-CI": 8, "CI-ST": 8}.get(name, 10)
    for stream in benchmark.streams.values():
        assert stream[0].dataset[0][0].shape == shape
        assert stream[0].dataset[0][0].dtype == torch.float32
        assert stream[0].dataset[0][0].min() >= 0 and stream[0].dataset[0][0].max() <= 1
    assert {int(t) for t in benchmark.test_stream[0].dataset.targets} == set(range(classes))
    hidden = -1 in [int(t) for t in benchmark.train_stream[0].dataset.targets]
    assert hidden == (name in NAMES[4:])
    losses = one_round(benchmark, shape, classes)
    assert {"L_rs", "L_rt", "L_c"} <= losses.keys() and all(map(np.isfinite, losses.values()))
    assert benchmark.data and "train" in benchmark.summary()


def test_cifar10_s_is_a_stratified_fifth(tmp_path, unchecked):
    write_cifar10(tmp_path)
    benchmark = paper_benchmark("CIFAR-10-s", tmp_path)
    labels = [int(t) for t in benchmark.train_stream[0].dataset.targets]
    assert [labels.count(c) for c in range(10)] == [3] * 10
    assert len(benchmark.test_stream[0].dataset) == 30
    other = paper_benchmark("CIFAR-10-s", tmp_path, seed=1)
    rows = [torch.stack([r[0] for r in b.train_stream[0].dataset]) for b in (benchmark, other)]
    assert not torch.equal(*rows)


def test_a_folder_of_jpeg_images_is_read_and_named(tmp_path):
    write_cifar10_folder(tmp_path)
    benchmark = paper_benchmark("CIFAR-10", tmp_path)
    assert "JPEG" in benchmark.data["CIFAR10"] and benchmark.classes == CIFAR
    assert f"CIFAR10: {benchmark.data['CIFAR10']}" in benchmark.summary()
    assert len(benchmark.train_stream[0].dataset) == 50


def test_stl_and_cifar_share_eight_or_nine_classes(tmp_path, unchecked):
    write_stl10(tmp_path)
    write_cifar10(tmp_path)
    benchmark = paper_benchmark("ST-CI", tmp_path)
    assert tuple(benchmark.classes) == SHARED_8
    # 30 test images, three a class, of which two classes are not shared
    assert len(benchmark.test_stream[0].dataset) == 24
    nine = paper_benchmark("CI-ST", tmp_path, classes=9)
    assert nine.classes[1] == "automobile" and len(nine.test_stream[0].dataset) == 18


def test_labels_and_images_stay_together(tmp_path, unchecked):
    write_svhn(tmp_path)
    write_mnist(tmp_path)
    from torchvision.datasets import MNIST

    benchmark = paper_benchmark("SV-MN", tmp_path, image_shape=(1, 28, 28))
    mnist = MNIST(str(tmp_path), train=False)
    for i in (0, 7, 19):
        image, label, _ = benchmark.test_stream[0].dataset[i]
        assert label == int(mnist.targets[i])
        torch.testing.assert_close(image[0], mnist.data[i] / 255)
    assert [int(t) for t in benchmark.source_stream[0].dataset.targets][:11] == [*range(10), 0]


def test_a_missing_set_is_an_error_with_the_places_and_the_remedy(tmp_path):
    for name in ("MN-US", "CIFAR-10-s", "STL-10", "SV-MN", "CIFAR-100"):
        with pytest.raises(FileNotFoundError) as problem:
            paper_benchmark(name, tmp_path)
        text = str(problem.value)
        assert str(tmp_path) in text and "download=True" in text and "digits-mini" in text


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="MN-US"):
        paper_benchmark("US-SV", tmp_path)
    with pytest.raises(ValueError, match="classes=7"):
        paper_benchmark("ST-CI", tmp_path, classes=7)


@pytest.mark.parametrize("name", ["MN-US", "US-MN"])
def test_real_digits(data_root, name):
    benchmark = paper_benchmark(name, data_root)
    rows = {"MN-US": (7291 + 60000, 2007), "US-MN": (60000 + 7291, 10000)}[name]
    found = (len(benchmark.train_stream[0].dataset), len(benchmark.test_stream[0].dataset))
    assert found == rows
    assert benchmark.train_stream[0].dataset[0][0].shape == (1, 28, 28)


def test_real_cifar10(data_root, tmp_path):
    archive = Path(data_root) / "cifar10-jpeg.zip"
    if not archive.is_file():
        pytest.skip("CETL_DATA has no cifar10-jpeg.zip")
    with zipfile.ZipFile(archive) as pictures:  # of a class 0000.jpg, 0100.jpg ...
        few = [name for name in pictures.namelist() if name.endswith("00.jpg")]
        pictures.extractall(tmp_path / "cifar10-jpeg", few)
    fifth = paper_benchmark("CIFAR-10-s", tmp_path)
    counts = Counter(int(label) for label in fifth.train_stream[0].dataset.targets)
    assert counts == {label: 10 for label in range(10)}
    assert len(fifth.test_stream[0].dataset) == 100 and "JPEG" in fifth.summary()
    whole = paper_benchmark("CIFAR-10", tmp_path)
    assert len(whole.train_stream[0].dataset) == 500
    assert whole.train_stream[0].dataset[0][0].shape == (3, 32, 32)


def test_nine_classes_are_refused_where_they_would_be_ignored(tmp_path):
    with pytest.raises(ValueError, match="classes=9 is for 'ST-CI' and 'CI-ST'; 'MN-US'"):
        paper_benchmark("MN-US", tmp_path, classes=9)
