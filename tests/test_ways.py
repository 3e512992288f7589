"""Four persons come to the README with something of their own, and follow its links to a result."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from avalanche.training.supervised import Naive
from networks import Of
from torch import nn
from torchvision.utils import save_image
from vector_streams import benchmark

from avalanche_cetl import CICNN

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are in the repository"),
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
DROPDOWN = re.compile(r"^:::\{dropdown\}.*?^:::$", re.M | re.S)


def table():
    text = (ROOT / "README.md").read_text()
    return text.split("## From what you have to a result")[1].split("\n## ")[0]


def way(row):
    """Return page and section that the README's table links in its row of that beginning."""
    (line,) = (line for line in table().splitlines() if line.startswith(f"| {row}"))
    page, anchor = re.search(r"\]\(([^)#]+)#([^)]+)\)", line).groups()
    return ROOT / page, anchor


def section(page, anchor):
    """Return the text below the heading of an anchor, up to the next heading of its level."""
    parts = re.split(r"^(## .+)$", page.read_text(), flags=re.M)
    found = {
        re.sub(r"[^\w -]", "", heading[3:].lower()).replace(" ", "-"): text
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return found[anchor]


@pytest.fixture
def follow(monkeypatch, tmp_path, capsys):
    """Run the code of the section that a row leads to, without examples; return what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CETL_CACHE", str(tmp_path / "features"))

    def run(row, **own):
        page, anchor = way(row)
        names = {"__name__": "page", **own}
        for number, block in enumerate(BLOCK.findall(DROPDOWN.sub("", section(page, anchor)))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(block, f"{page.name}[{number}]", "exec"), names)
        printed = capsys.readouterr().out
        return names, [float(value) for value in re.findall(r"(\d+\.\d) %", printed)], printed

    return run


def write(folder, images, labels, names):
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = Path(folder) / names[label]
        place.mkdir(parents=True, exist_ok=True)
        save_image(image.repeat(3, 1, 1), place / f"{number}.png")


def test_someone_with_an_ewc_script_changes_the_plugin_alone(follow):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    tasks = benchmark(rows=600, disjoint=False)
    own = {"torch": torch, "Naive": Naive, "benchmark": tasks, "net": net}
    names, (accuracy,), _ = follow("a script with `EWCPlugin`", **own)
    assert names["plugin"].bases and accuracy > 60


def test_someone_with_two_image_folders_gets_a_small_network(digits, follow):
    names = ("cats", "dogs")
    write("data/train", *digits(16, classes=2, size=32), names)
    write("data/test", *digits(10, classes=2, size=32, seed=1), names)
    found, (accuracy,), printed = follow("image folders |")
    assert "0 cats, 1 dogs" in printed and accuracy >= 80
    assert torch.load("target.pt", weights_only=True).keys() == found["target"].state_dict().keys()


def test_someone_with_two_domains_adapts_without_labels_of_the_second(digits, follow):
    names = ("cats", "dogs")
    write("labelled", *digits(40, classes=2, size=32), names)
    images, labels = digits(40, classes=2, size=32, seed=1)
    write("other", 0.3 + 0.3 * images, torch.zeros_like(labels), [""])  # no class folders
    images, labels = digits(10, classes=2, size=32, seed=2)
    write("other-test", 0.3 + 0.3 * images, labels, names)
    _, accuracies, printed = follow("two domains")
    without, adapted = accuracies[-2:]
    assert "without adaptation" in printed and adapted >= max(without, 80)


def test_someone_with_an_onnx_teacher_gets_a_small_network(follow):
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnx", reason="writes an ONNX file")
    from sklearn.datasets import load_digits

    digits = load_digits()
    torch.manual_seed(0)
    teacher = CICNN(10, (1, 8, 8), width=0.3)
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    x, y = torch.tensor(digits.images[::3]).float().unsqueeze(1) / 16, digits.target[::3]
    y = torch.tensor(y)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(teacher(x[rows]), y[rows]).backward()
            optimizer.step()
    both = Of(lambda m, x: (m.net.forward_features(x), m.net(x)), net=teacher).eval()
    names = {"input_names": ["image"], "output_names": ["features", "logits"]}
    free = {name: {0: "n"} for name in ("image", "features", "logits")}
    torch.onnx.export(both, x[:2], "teacher.onnx", dynamic_axes=free, dynamo=False, **names)
    _, (of_teacher, small), _ = follow("a teacher in an ONNX file")
    assert of_teacher > 50 and small > of_teacher - 15


def test_the_four_rows_are_the_readmes_table():
    assert len(re.findall(r"^\| .*\]\(docs/.+#.+\) \|$", table(), re.M)) == 4
