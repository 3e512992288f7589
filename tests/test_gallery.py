"""Every script of the gallery runs, in a small form."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
pytestmark = pytest.mark.skipif(not GALLERY.is_dir(), reason="the gallery is in the repository")


def script(name):
    spec = importlib.util.spec_from_file_location(f"gallery_{name}", GALLERY / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "options", "at_least"),
    [
        ("transfer", {"source_epochs": 1, "rounds": 2}, 0.3),
        ("few_labels", {"rounds": 2}, 0.2),
        ("mixed_images", {"source_epochs": 1, "rounds": 2, "per_image": 2}, 0.3),
        ("soft_targets", {"teacher_epochs": 3, "rounds": 3}, 0.3),
        ("hints", {"teacher_epochs": 2, "rounds": 2}, 0.2),
        ("unsupervised_adaptation", {"source_epochs": 1, "rounds": 1}, 0.2),
        ("semi_supervised_adaptation", {"source_epochs": 1, "rounds": 1}, 0.2),
        ("continual_transfer", {"rounds": 1}, 0.15),
    ],
)
def test_runs_and_beats_chance(name, options, at_least, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CETL_CACHE", str(tmp_path))
    assert at_least < script(name).main(**options) <= 1


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


def test_own_folders(folder, capsys):
    main = script("own_folders").main
    found = main(folder, rounds=1, size=16, encoder="test_resnet", weights=None)
    assert 0 <= found <= 1
    assert "class2" in capsys.readouterr().out and Path("images.png").stat().st_size > 1000


def test_timm_networks(digits, capsys):
    torch.manual_seed(0)
    sets = [(digits(40, size=32, seed=s)[0].repeat(1, 3, 1, 1), digits(40)[1]) for s in (0, 1)]
    main = script("timm_networks").main
    small = {"source": "test_vit", "rounds": 1, "pretrained": False, "labels_per_class": 5}
    assert 0 <= main(sets, **small) <= 1


def test_they_are_short_and_all_are_tested():
    names = {path.stem for path in GALLERY.glob("*.py")}
    assert names == {
        "transfer", "few_labels", "soft_targets", "hints", "unsupervised_adaptation",
        "semi_supervised_adaptation", "continual_transfer", "own_folders", "timm_networks",
        "mixed_images",
    }  # fmt: skip
    for name in names:
        assert len((GALLERY / f"{name}.py").read_text().splitlines()) < 40, name
        assert f"{name}.py" in (GALLERY / "README.md").read_text()
