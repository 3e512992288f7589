"""A folder of images, one folder a class."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # the tests share sets


@pytest.fixture
def folder(tmp_path):
    for name in ("bee", "ant"):
        for number in range(4):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8, 3), 40 * number + 20 * (name == "bee"), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"
