import logging
import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_cetl import adaptation_benchmark, distillation_benchmark, transfer_benchmark
from avalanche_cetl.common.image_files import ENDINGS, ImageFiles
from avalanche_cetl.features.command import photo_transform
from avalanche_cetl.scenarios.images import read_images

GREY = Image.new("RGB", (8, 8), (102, 102, 102))


@pytest.fixture
def folder(tmp_path):
    """Two classes of two files each, all the same grey."""
    for name in ("cat", "dog"):
        for number in range(2):
            place = tmp_path / "images" / name
            place.mkdir(parents=True, exist_ok=True)
            GREY.save(place / f"{number}.png")
    return tmp_path / "images"


def test_rows_are_those_of_torchvision_s_image_folder(folder):
    from torchvision.datasets import ImageFolder

    (folder / "cat" / "below").mkdir()
    for name in ("9.PNG", "below/10.JPEG", "B.bmp", "a.webp"):
        GREY.save(folder / "cat" / name)
    theirs, ours = ImageFolder(str(folder)), ImageFiles(folder)
    assert ours.classes == theirs.classes and ours.labels == theirs.targets
    assert [str(folder / name) for name in ours.files] == [path for path, _ in theirs.samples]


@pytest.mark.parametrize("ending", ["GIF", "jfif", "JPE", "WebP", "TIF", "pbm", "pnm", "Jp2"])
def test_files_of_every_ending_are_read(folder, ending):
    kind = {"gif": "GIF", "webp": "WEBP", "tif": "TIFF", "pbm": "PPM", "pnm": "PPM",
            "jp2": "JPEG2000"}.get(ending.lower(), "JPEG")  # fmt: skip
    image = GREY.convert("1") if ending == "pbm" else GREY
    image.save(folder / "cat" / f"z.{ending}", kind)
    files = ImageFiles(folder)
    assert files.files[2] == os.path.join("cat", f"z.{ending}")
    wanted = picture_of(image)
    torch.testing.assert_close(files[2][0], wanted, atol=2 / 255, rtol=0)


def picture_of(image):
    return torch.from_numpy(np.asarray(image.convert("RGB")) / 255).permute(2, 0, 1).float()


def test_hidden_and_system_files_and_folders_are_passed_over(folder, caplog):
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "dog/.ipynb_checkpoints"):
        (folder / name).mkdir()
        GREY.save(folder / name / "1.png")
    for name in (".DS_Store", "dog/Thumbs.db", "dog/._0.png", "cat/desktop.ini"):
        (folder / name).write_bytes(b"clutter")
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        files = ImageFiles(folder)
    assert files.classes == ["cat", "dog"] and files.labels == [0, 0, 1, 1]
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("avalanche_cetl")]
    assert "8 entries passed over" in line and ".DS_Store" in line and "and 3 more" in line
    benchmark = transfer_benchmark(folder, folder)
    assert [int(t) for t in benchmark.train_stream[0].dataset.targets] == [0, 0, 1, 1]


def test_files_that_may_be_images_are_counted_and_named_in_one_warning(folder):
    for name in ("cat/a.heic", "cat/b.txt", "dog/c.svg"):
        (folder / name).write_bytes(b"?")
    GREY.save(folder / "lost.png")
    with pytest.warns(UserWarning) as found:
        ImageFiles(folder)
    (warning,) = found
    told = str(warning.message)
    assert "4 entries passed over" in told and str(folder) in told
    for name in ("a.heic", "b.txt", "c.svg", "lost.png"):
        assert name in told


def test_a_flat_folder_has_no_labels(folder):
    (folder / "cat" / ".hidden").mkdir()
    files = ImageFiles(folder / "cat")
    assert files.files == ["0.png", "1.png"] and files.labels == [-1, -1] and files.classes == []
    flat = folder / "cat"
    benchmark = distillation_benchmark(folder, folder, unlabelled=flat)
    assert [int(t) for t in benchmark.train_stream[0].dataset.targets] == [0, 0, 1, 1, -1, -1]
    adapted = adaptation_benchmark(folder, flat, folder)
    assert [int(t) for t in adapted.train_stream[0].dataset.targets] == [-1, -1, 0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"has no label.*one folder a class"):
        transfer_benchmark(flat, folder)


def test_a_class_without_an_image_is_refused_with_what_was_passed_over(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "1.heic").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"class.* fox.*1 entry passed over: fox/1\.heic"):
        ImageFiles(folder)


@pytest.mark.parametrize("keep_pil", [False, True])
def test_all_files_that_cannot_be_read_are_counted_and_named(folder, keep_pil):
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    whole = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(np.full((8, 8), 255, np.float32)).save(folder / "dog" / "z.tif")
    with pytest.raises(ValueError, match="3 of 5 files") as found:
        read_images(folder, keep_pil)
    for row, name in ((1, "cat/1.png"), (2, "dog/0.png"), (4, "dog/z.tif")):
        assert f"row {row} of {folder}: {folder / name} cannot be read" in str(found.value)


def test_a_folder_under_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    benchmark = transfer_benchmark("~/images", "~/images")
    assert benchmark.classes == ["cat", "dog"]
    with pytest.raises(ValueError, match=f"{folder.parent}.*no such folder"):
        ImageFiles("~/nowhere")


def deep(folder):
    """A 16-bit file in each class, of the same ramp."""
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("cat", "dog"):
        Image.fromarray(ramp).save(folder / name / "z.png")
    return torch.from_numpy(ramp / 65535).float()


def test_deep_files_keep_their_depth_or_become_rgb_for_transforms(folder):
    ramp = deep(folder)
    found = read_images(folder)
    assert found.shape == (3, 8, 8)
    torch.testing.assert_close(found[2][0], ramp.expand(3, -1, -1), atol=1e-7, rtol=0)
    modes = []

    def transform(image):
        modes.append(image.mode)
        return image

    benchmark = transfer_benchmark(
        folder, folder, train_transform=transform, eval_transform=transform
    )
    image = benchmark.train_stream[0].dataset[2][0]
    assert modes == ["RGB"]
    torch.testing.assert_close(image, ramp.expand(3, -1, -1), atol=0.51 / 255, rtol=0)


def test_the_command_line_s_transform_sees_what_benchmarks_see(folder):
    deep(folder)
    GREY.quantize(2).save(folder / "cat" / "p.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(
        folder / "dog" / "e.png", exif=exif
    )
    seen, kept = ImageFiles(folder, photo_transform(8, 1.0)), read_images(folder)
    assert len(seen) == len(kept) == 8
    for row in range(8):
        torch.testing.assert_close(seen[row][0], kept[row][0], atol=0.51 / 255, rtol=0)
        assert seen[row][1] == kept[row][1]


def test_endings_are_lower_case_and_have_a_dot():
    assert all(ending == ending.lower() and ending[0] == "." for ending in ENDINGS)


def test_hidden_files_are_neither_counted_nor_named_beside_others(folder):
    for name in (".DS_Store", "dog/._0.png", "cat/Thumbs.db", "cat/notes.txt"):
        (folder / name).write_bytes(b"?")
    (folder / ".cache").mkdir()
    with pytest.warns(UserWarning) as found:
        ImageFiles(folder)
    (told,) = [str(warning.message) for warning in found]
    assert told == f"{str(folder)!r}: 1 entry passed over: {os.path.join('cat', 'notes.txt')}."


def test_a_folder_of_hidden_files_alone_holds_no_image(tmp_path):
    GREY.save(tmp_path / ".a.png")
    (tmp_path / "b.txt").write_bytes(b"?")
    with pytest.raises(ValueError, match=r"holds no image.*hidden files are passed over") as found:
        ImageFiles(tmp_path)
    assert "1 entry passed over: b.txt." in str(found.value) and ".a.png" not in str(found.value)


@pytest.mark.parametrize("read", [
    ImageFiles,
    read_images,
    lambda folder: transfer_benchmark(folder, folder),
    lambda folder: distillation_benchmark(folder, folder, unlabelled=folder),
    lambda folder: adaptation_benchmark(folder, [folder, folder], [folder, folder]),
], ids=["files", "images", "transfer", "distillation", "adaptation"])  # fmt: skip
def test_the_warning_points_at_the_caller_s_line(folder, read):
    (folder / "cat" / "notes.txt").write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"notes\.txt") as found:
        read(folder)
    assert {warning.filename for warning in found} == {__file__}
