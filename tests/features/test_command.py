import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from avalanche_cetl import PrecomputedEncoder, TimmEncoder
from avalanche_cetl.__main__ import main
from avalanche_cetl.common.image_files import ImageFiles
from avalanche_cetl.features.command import _as_options, extract_folder, photo_transform
from avalanche_cetl.features.extraction import Extraction

TINY = "test_resnet.r160_in1k"


@pytest.fixture
def folder(tmp_path):
    """Photos of several sizes and modes in two class folders."""
    draw = np.random.default_rng(0)
    for number in range(6):
        place = tmp_path / "images" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (40 + 10 * number, 90, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.convert("L") if number == 3 else image).save(place / f"{number}.png")
    return tmp_path / "images"


def read(path):
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["cetl"])


def test_a_folders_features_labels_and_names_are_in_one_file(tmp_path, folder):
    torch.manual_seed(0)
    encoder = TimmEncoder(TINY, pretrained=False, image_size=32)
    images = ImageFiles(folder, photo_transform(32, 0.875))
    path = extract_folder(encoder, images, tmp_path / "out.safetensors", "float32", Extraction(4))
    tensors, about = read(path)
    wanted = encoder(torch.stack([images[i][0] for i in range(6)]))
    torch.testing.assert_close(tensors["features"], wanted)
    assert tensors["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert about["classes"] == ["cat", "dog"] and about["fingerprint"] == encoder.fingerprint()
    assert about["files"] == [os.path.join("cat", f"{i}.png") for i in (0, 2, 4)] + [
        os.path.join("dog", f"{i}.png") for i in (1, 3, 5)
    ]
    torch.testing.assert_close(PrecomputedEncoder(path).streams["train"][0], wanted)
    assert not list(tmp_path.glob("*.parts"))


def test_photos_keep_their_shape():
    image = Image.new("RGB", (90, 40))
    image.paste((255, 255, 255), (44, 0, 46, 40))
    seen = photo_transform(32, 0.8)(image)
    assert seen.shape == (3, 32, 32) and seen[:, :, 15:17].mean() > 0.5
    assert seen[:, :, :12].max() < 0.1


def test_the_command_line_writes_the_features_of_a_folder(tmp_path, folder, monkeypatch, capsys):
    import timm

    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model(TINY).state_dict(), weights)
    out = tmp_path / "features.safetensors"
    arguments = ["features", "--encoder", TINY, "--weights", str(weights), "--images", str(folder),
                 "--out", str(out), "--workers", "0", "--device", "cpu"]  # fmt: skip
    assert main(arguments) == 0
    dim = TimmEncoder(TINY, weights=weights).dim
    assert f"6 images, {dim} features" in capsys.readouterr().out
    tensors, _ = read(out)
    assert tensors["features"].dtype == torch.float16
    assert main([*arguments, "--layer", "-2", "--pool", "2", "--dtype", "float32"]) == 0
    encoder = TimmEncoder(TINY, weights=weights, layer=-2, pool=2)
    assert read(out)[0]["features"].shape == (6, encoder.dim)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    home = ["--images=~/images", "--out=~/home.safetensors", "--weights=~/weights.pth"]
    assert main([*arguments, *home]) == 0
    assert torch.equal(read(tmp_path / "home.safetensors")[0]["features"], tensors["features"])
    assert main([*arguments, "--images", str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main([*arguments, "--encoder", "resnet9000"]) == 1
    assert "near it" in capsys.readouterr().err


def test_flat_folders_are_read_and_empty_or_broken_ones_are_refused(tmp_path, folder):
    transform = photo_transform(16, 1.0)
    flat = ImageFiles(folder / "cat", transform)
    assert flat.files == ["0.png", "2.png", "4.png"] and flat.labels == [-1] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image"):
        ImageFiles(tmp_path / "empty", transform)
    (tmp_path / "hollow" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="class"):
        ImageFiles(tmp_path / "hollow", transform)
    (folder / "dog" / "3.png").write_bytes(b"no picture")
    images = ImageFiles(folder, transform)
    with pytest.raises(ValueError, match=r"row 4 of .*3\.png cannot be read"):
        images[4]


# What torchrun does, with forks in place of fresh interpreters.
UNDER_TORCHRUN = """
import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from avalanche_cetl.__main__ import main

config = LaunchConfig(
    min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="features", rdzv_backend="c10d",
    rdzv_endpoint="localhost:0", start_method="fork", max_restarts=0,
)
assert elastic_launch(config, main)(sys.argv[1:]) == {0: 0, 1: 0}
"""


def test_under_torchrun_the_file_is_the_same(tmp_path, folder, partners):
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / "w.pth")
    common = ["features", "--encoder", TINY, "--weights", tmp_path / "w.pth",
              "--images", folder, "--workers", "0"]  # fmt: skip
    alone = 'import runpy; runpy.run_module("avalanche_cetl", run_name="__main__")'
    for name, script in (("1.safetensors", alone), ("2.safetensors", UNDER_TORCHRUN)):
        partners.start(script, *common, "--out", tmp_path / name)
    assert [output.count("6 images") for output in partners.succeed()] == [1, 1]
    assert len({path.read_bytes() for path in tmp_path.glob("?.safetensors")}) == 1


def test_a_failed_download_is_told_at_once_and_names_options(folder, tmp_path, monkeypatch, capsys):
    import avalanche_cetl.encoders.timm_models as module

    class Unplugged:
        def head(self, *args, **options):
            raise OSError("no network")

    monkeypatch.setattr(module, "get_session", Unplugged)
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr(module.timm, "create_model", lambda *_, **__: pytest.fail("tries for long"))
    out = str(tmp_path / "out.safetensors")
    arguments = ["--encoder", "resnet10t", "--images", str(folder), "--out", out]
    assert main(["features", *arguments]) == 1
    told = capsys.readouterr().err
    assert "no network" in told and "--weights FILE" in told and "--weights package" in told
    assert "weights=" not in told and "pretrained" not in told


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("layer='x' is not in 'r'.", "--layer x is not in 'r'."),
        ("name a layer with layer=, or a side", "name a layer with --layer, or a side"),
        ("Take another image_size.", "Take another --image-size."),
        (
            "batch_size=0 has to be >= 1, num_workers=-1",
            "--batch-size 0 has to be >= 1, --workers -1",
        ),
        ("weights='/a/b c.pth': there is no", "--weights /a/b c.pth: there is no"),
        ("a layer of a pool", "a layer of a pool"),
    ],
)
def test_errors_speak_of_options(said, shown):
    assert _as_options(said) == shown
