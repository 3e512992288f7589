"""CIFAR-10 from a folder of images, or from a zip of one."""

import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.data.cifar import CLASSES, read_cifar10


def test_a_folder_and_a_zip_of_images_are_read_alike(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(CLASSES[:3]):
            path = tmp_path / "cifar10-jpeg" / part / name / "1.jpg"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), 40 * number, np.uint8)).save(path)
    (images, labels), _, kind = read_cifar10(tmp_path)
    assert kind == "JPEG" and labels.tolist() == [0, 1, 2] and images.shape == (3, 3, 32, 32)
    assert abs(float(images[2].mean()) - 80 / 255) < 0.01
    shutil.make_archive(str(tmp_path / "cifar10-jpeg"), "zip", tmp_path / "cifar10-jpeg")
    shutil.rmtree(tmp_path / "cifar10-jpeg")
    (zipped, names), _, _ = read_cifar10(tmp_path)
    assert (zipped == images).all() and (names == labels).all()


def test_a_missing_data_set_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py"):
        read_cifar10(tmp_path)
