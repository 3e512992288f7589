"""Small data made here, so that no test downloads anything."""

import os

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(2)


def make_digits(count=60, classes=3, size=8, seed=0, shift=0.0):
    """Images of bars whose position tells the class, with noise: easy and quick to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.15 * torch.rand(count, 1, size, size, generator=generator) + shift
    for i, label in enumerate(labels.tolist()):
        row = 1 + 2 * label
        images[i, 0, row : row + 2, 1:-1] += 0.7
    return images.clamp(0, 1), labels


@pytest.fixture
def digits():
    return make_digits


@pytest.fixture
def data_root():
    """The optional folder with real data sets; tests that need it skip without it."""
    root = os.environ.get("CETL_DATA")
    if not root or not os.path.isdir(root):
        pytest.skip("CETL_DATA is not set: this test needs real data sets on disk")
    return root
