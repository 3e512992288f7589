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


NOUGHT = {"input_mean": [0.0], "input_std": [1.0]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": [0.0]}, r"std=\[0\.0\]: deviations have to be > 0"),
        ({"input_std": [0.0]}, r"input_std=\[0\.0\]: deviations have to be > 0"),
        ({"std": [float("nan")]}, r"std=\[nan\]: deviations have to be > 0"),
        ({"std": [float("inf")] * 3}, "std=.*finite"),
        ({"mean": [float("nan")] * 3}, "mean=.*finite"),
        ({"input_mean": [0, 0, float("inf")]}, "input_mean=.*finite"),
        ({"mean": [0.1, 0.2]}, "mean=.*has . values: give 1 or 3,"),
        ({"std": [1, 1, 1, 1]}, "std=.*has . values: give 1 or 3,"),
        ({"input_mean": []}, "input_mean=.*has . values: give 1 or 3,"),
        ({"input_std": [1, 1]}, "input_std=.*has . values: give 1 or 3,"),
        ({"channels": 1}, "mean=.*has 3 values: give 1,"),
        ({"channels": None, "mean": []}, "has 0 values: give 1,"),
    ],
)
def test_statistics_that_no_image_can_have_are_refused(given, message):
    channels = given.get("channels", 3)
    options = {name: values for name, values in given.items() if name != "channels"}
    with pytest.raises(ValueError, match=message):
        Preprocessing(channels, (8, 8), **{**IMAGENET, **NOUGHT, **options})


@pytest.mark.parametrize("word", ["input_mean", "input_std"])
def test_grey_images_are_not_tinted_by_the_statistics_of_colour(word):
    undone = made(**{**NOUGHT, word: [0.5, 0.4, 0.3]})
    undone(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=f"{word} has 3 values, and the images have 1 channel"):
        undone(torch.rand(2, 1, 8, 8))


def test_as_many_equal_values_as_colours_are_one_for_grey():
    x = torch.rand(2, 1, 8, 8)
    three = made(input_mean=[0.5] * 3, input_std=[0.2] * 3)
    assert torch.equal(three(x - 0.5), made(input_mean=[0.5], input_std=[0.2])(x - 0.5))


def test_the_statistics_of_colour_are_undone_before_a_network_reads_grey():
    x = torch.rand(2, 3, 8, 8)
    undone = Preprocessing(1, None, input_mean=[0.5, 0.4, 0.3], input_std=[0.2, 0.2, 0.2])
    standardised = (x - undone.input_mean) / undone.input_std
    torch.testing.assert_close(undone(standardised), Preprocessing(1, None)(x))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_in_half_precision_are_resized(dtype, interpolation):
    x = torch.rand(2, 3, 9, 9).to(dtype)
    found = made(interpolation=interpolation)(x).float()
    wanted = made(interpolation=interpolation)(x.float())
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=3e-2)
