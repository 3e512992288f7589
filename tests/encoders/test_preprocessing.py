"""What an encoder does with bytes, and with floats that are not in [0, 1]."""

import warnings

import pytest
import torch

from avalanche_cetl.encoders.preprocessing import Preprocessing

IMAGENET = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2]}


def made(size=(8, 8), **options):
    return Preprocessing(3, size, **{**IMAGENET, **options})


@pytest.mark.parametrize("size", [(8, 8), (6, 6)])
def test_bytes_are_images_times_255(size):
    raw = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(made(size)(raw), made(size)(raw.float() / 255))
    undone = made(size, input_mean=[0.5], input_std=[0.5])
    assert torch.equal(undone(raw), made(size)(raw.float() / 255))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_other_integers_are_refused(dtype):
    with pytest.raises(TypeError, match="scale=True"):
        made()(torch.zeros(1, 3, 8, 8, dtype=dtype))


def wrong(kind):
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "0 to 255": 255 * x,
        "-1 to 1": 2 * x - 1,
        "standardised": (x - x.mean()) / x.std(),
        "digits": (x * (x > 0.8) - 0.1307) / 0.3081,
    }[kind]


@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
@pytest.mark.parametrize("kind", ["0 to 255", "-1 to 1", "standardised", "digits"])
def test_floats_of_another_scale_are_refused_with_the_remedy(kind, size):
    remedy = "255" if kind == "0 to 255" else "input_mean="
    with pytest.raises(ValueError, match=remedy):
        made(size)(wrong(kind))
    with pytest.raises(ValueError, match="input_mean and input_std are undone"):
        made(size, input_mean=[5.0], input_std=[9.0])(wrong(kind))


def test_images_whose_normalisation_is_undone_rightly_are_taken():
    x = torch.rand(4, 3, 8, 8)
    undone = made(input_mean=[0.3, 0.2, 0.1], input_std=[0.25, 0.5, 2.0])
    mean, std = undone.input_mean, undone.input_std
    torch.testing.assert_close(undone((x - mean) / std), made()(x), rtol=1e-4, atol=1e-4)


def test_a_little_noise_is_taken_and_much_of_it_is_said_once():
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    encoder = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(x * 1.2 - 0.1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with pytest.warns(RuntimeWarning, match="said once"):
        encoder(x + 0.2 * noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(x + 0.2 * noise)


def test_floats_that_are_handed_on_unchanged_may_have_any_scale():
    x = 100 * torch.randn(2, 3, 8, 8)
    plain = Preprocessing(3, (8, 8))
    assert torch.equal(plain(x), x)
    with pytest.raises(ValueError, match=r"reads images in \[0, 1\]"):
        plain(100 * torch.randn(2, 3, 9, 9))


@pytest.mark.parametrize("word", ["std", "input_std"])
def test_deviations_have_to_be_positive(word):
    with pytest.raises(ValueError, match=rf"{word}=\[0\.0\]"):
        made(**{"input_mean": [0.0], "input_std": [1.0], word: [0.0]})
