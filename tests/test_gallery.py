"""Every script of the gallery runs, in a small form, and so does every script of version 0.1.

A script of the gallery that is still what it was in version 0.1 runs once; ``preset="best"``, which
is the default since then, makes no difference. Those of version 0.1 alone show that nothing that
they call is gone, so they run on a few images and learn next to nothing.
"""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_vision import alike
from matplotlib import pyplot as plt
from PIL import Image

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
VERSION_0_1 = Path(__file__).parent / "version_0_1"
pytestmark = pytest.mark.skipif(not GALLERY.is_dir(), reason="the gallery is in the repository")


#: Tutorials that draw what came out.
DRAWS = ("few_labels", "soft_targets", "unsupervised_adaptation", "source_free", "stream")


def code_of(path):
    """A script without its docstring, which stands in one line."""
    return path.read_text().split("\n", 1)[1].replace(', preset="best"', "")


def versions(name):
    """The script as it was in version 0.1, and as it is now where its code differs."""
    old, new = VERSION_0_1 / f"{name}.py", GALLERY / f"{name}.py"
    if old.exists() and code_of(old) == code_of(new):
        return [new]
    return [path for path in (old, new) if path.exists()]


def main_of(path, whole=False):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module if whole else module.main


#: What keeps the scripts of today short.
SHORTER = {
    "few_labels": {"source_epochs": 1},
    "hints": {"rounds": 2},
    "mixed_images": {"rounds": 2},
    "soft_targets": {"rounds": 2},
    "unsupervised_adaptation": {"source_epochs": 3, "rounds": 2, "learning_rates": (3e-3,)},
}


def each(name, options=None, *values):
    found = []
    for path in versions(name):
        more = SHORTER.get(name, {}) if path.parent == GALLERY else {}
        given = () if options is None else ({**options, **more}, *values)
        found.append(pytest.param(path, *given, id=f"{path.parent.name}-{name}"))
    return found


@pytest.mark.parametrize(
    ("path", "options", "at_least"),
    [
        *each("transfer", {"source_epochs": 1, "rounds": 1}, 0.2),
        *each("few_labels", {"rounds": 1}, 0.3),
        *each("mixed_images", {"source_epochs": 1, "rounds": 1, "per_image": 1}, 0.3),
        *each("soft_targets", {"teacher_epochs": 3, "rounds": 3}, 0.15),
        *each("unsupervised_adaptation", {"source_epochs": 1, "rounds": 1}, 0.15),
        *each("source_free", {"source_epochs": 2, "rounds": 2}, 0.3),
        *each("stream", {"tasks": 2, "epochs": 2}, 0.2),
        *each("semi_supervised_adaptation", {"source_epochs": 1, "rounds": 1}, 0.2),
        *each("continual_transfer", {"rounds": 1}, 0.15),
        *each("hints", {"teacher_epochs": 3, "rounds": 3}, 0.15),
    ],
)
def test_a_script_runs_and_beats_chance(
    path, options, at_least, fewer_digits, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("CETL_CACHE", str(tmp_path))
    if path.parent == VERSION_0_1:
        fewer_digits(10, 8)
        at_least = 0
    else:
        fewer_digits(5, 3)
    assert at_least < main_of(path)(**options) <= 1
    drawn = [plt.figure(number) for number in plt.get_fignums()]
    plt.close("all")
    assert path.stem not in DRAWS or path.parent != GALLERY or drawn
    assert not [pair for figure in drawn for pair in alike(figure)]


@pytest.fixture
def folder(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CETL_CACHE", str(tmp_path / "cache"))
    for part, seed in (("train", 0), ("test", 1)):
        images, labels = digits(24, size=16, seed=seed)
        for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            place = tmp_path / "images" / part / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = np.repeat((image[0].numpy() * 255).astype(np.uint8)[..., None], 3, 2)
            Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("path", each("own_folders"))
def test_the_script_for_own_folders_runs_and_names_the_classes(path, folder, capsys):
    found = main_of(path)(folder, rounds=1, size=16, encoder="test_resnet", weights=None)
    assert 0 <= found <= 1
    pictures = [*folder.glob("images.png"), *Path.cwd().glob("images.png")]
    assert "class2" in capsys.readouterr().out and pictures[0].stat().st_size > 1000
    plt.close("all")


def test_the_script_for_own_folders_makes_folders_to_try(tmp_path):
    module = main_of(GALLERY / "own_folders.py", whole=True)
    module.example_folder(tmp_path, pieces=3, side=8)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == [
        f"{part}/{name}/{number}.png"
        for part, numbers in (("test", (2,)), ("train", (0, 1)))
        for name in ("flower", "temple")
        for number in numbers
    ]


@pytest.mark.parametrize("path", each("timm_networks"))
def test_the_script_for_timm_networks_runs(path, digits, capsys):
    torch.manual_seed(0)
    sets = [(digits(40, size=32, seed=s)[0].repeat(1, 3, 1, 1), digits(40)[1]) for s in (0, 1)]
    small = {"source": "test_vit", "rounds": 1, "pretrained": False, "labels_per_class": 5}
    assert 0 <= main_of(path)(sets, **small) <= 1


def test_the_readmes_script_of_version_0_1_runs(few_digits, capsys):
    exec(compile((VERSION_0_1 / "readme.py").read_text(), "readme.py", "exec"), {})
    assert "Top1_Acc_Stream/eval_phase/test_stream" in capsys.readouterr().out


def lines_of_code(path):
    """The lines of a script without its docstring, comments and blank lines."""
    code = re.sub(r'\A""".*?"""', "", path.read_text(), flags=re.S)
    lines = (line.strip() for line in code.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_scripts_of_the_gallery_are_short_and_all_are_tested():
    names = {path.stem for path in GALLERY.glob("*.py")}
    assert names == {
        "transfer", "few_labels", "soft_targets", "hints", "unsupervised_adaptation",
        "semi_supervised_adaptation", "continual_transfer", "own_folders", "timm_networks",
        "mixed_images", "stream", "source_free",
    }  # fmt: skip
    for name in names:
        text = (GALLERY / f"{name}.py").read_text()
        tutorial = "\n# %%\n" in text
        assert len(lines_of_code(GALLERY / f"{name}.py")) < (90 if tutorial else 40), name
        assert f"{name}.py" in (GALLERY / "README.md").read_text()
