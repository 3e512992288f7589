"""Pairs of domains."""

import numpy as np
import pytest
import torch

from benchmarks.data import digits
from benchmarks.data.digits import COUNTS, Pair, as_benchmark, read_pair


def test_digits_mini_comes_out_of_packages(fewer_digits):
    fewer_digits(1, 1)  # all of them, read before
    pair = read_pair("digits-mini", "nowhere", COUNTS, 0)
    assert pair.shape == (1, 8, 8) and pair.classes == 10
    assert pair.source_test is None
    assert len(pair.source[0]) == 5000 and len(pair.target) + len(pair.target_test[0]) == 1797
    assert set(pair.target_test[1].tolist()) == set(range(10))
    training = as_benchmark(pair).train_stream[0].dataset
    rows = zip(training.targets, training.domain_labels, strict=True)
    labels = {int(label) for label, domain in rows if int(domain) == 0}
    assert labels == {-1}  # no target label is in the training stream


def test_mnist_m_stands_beside_mnist_in_its_shape(tmp_path, monkeypatch):
    def images(count):
        return np.arange(count * 32 * 32 * 3).reshape(count, 32, 32, 3).astype(np.uint8)

    labels = np.arange(40) % 10
    np.savez(
        tmp_path / "mnist_m.npz",
        x_train=images(40), y_train=labels, x_test=images(10), y_test=labels[:10],
    )  # fmt: skip
    grey = torch.rand(30, 1, 28, 28), torch.arange(30) % 10
    mnist = Pair(grey, grey, torch.rand(5, 1, 28, 28), grey)
    whole = digits.read_pair

    def pair(direction, *args):
        return mnist if direction == "MN-US" else whole(direction, *args)

    monkeypatch.setattr(digits, "read_pair", pair)
    found = pair("MN-MM", str(tmp_path), {"MN": 20}, 0)
    assert found.shape == (3, 32, 32) and found.classes == 10
    assert found.source_test[0].shape == (30, 3, 32, 32)
    colours = found.source[0][:, :, 2:-2, 2:-2]
    assert torch.equal(colours, grey[0].expand(-1, 3, -1, -1))
    assert found.source[0].sum() == pytest.approx(3 * float(grey[0].sum()), rel=1e-5)
    assert len(found.target) == 20 and len(found.target_test[0]) == 10
    first = torch.as_tensor(images(10)).permute(0, 3, 1, 2) / 255
    assert torch.equal(found.target_test[0], first)
    assert len(pair("MN-MM", str(tmp_path), None, 0).target) == 40
    with pytest.raises(FileNotFoundError, match="mnist_m"):
        pair("MN-MM", str(tmp_path / "other"), None, 0)
