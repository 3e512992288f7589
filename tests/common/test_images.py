import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_cetl.common.images import (
    check_range,
    image_tensor,
    picture_tensor,
    plain_picture,
    recoloured,
    rgb_picture,
)
from avalanche_cetl.encoders.preprocessing import Preprocessing
from avalanche_cetl.scenarios.domains import fit
from avalanche_cetl.scenarios.images import LabelledImages

COLOUR = (200, 40, 90)


def pixels(*shape, dtype=np.uint8, top=256):
    return np.random.default_rng(0).integers(0, top, shape, dtype=dtype)


def saved(image, path, **options):
    image.save(path, **options)
    with Image.open(path) as opened:
        opened.load()
        return opened


def assert_colour(image, wanted, atol=1 / 255):
    tensor = picture_tensor(image)
    assert tensor.shape[0] == len(wanted)
    for channel, value in zip(tensor, wanted, strict=True):
        torch.testing.assert_close(
            channel, torch.full_like(channel, value / 255), atol=atol, rtol=0
        )


# ------------------------------------------------------------------ eight bits


@pytest.mark.parametrize(("mode", "shape"), [("L", (7, 5)), ("RGB", (7, 5, 3))])
def test_grey_and_colour_of_eight_bits_stay_to_the_bit(mode, shape):
    values = pixels(*shape)
    tensor = picture_tensor(Image.fromarray(values))
    wanted = torch.from_numpy(values.reshape(7, 5, -1)).permute(2, 0, 1).float() / 255
    assert plain_picture(Image.fromarray(values)).mode == mode and torch.equal(tensor, wanted)
    assert np.array_equal(
        np.asarray(rgb_picture(Image.fromarray(values))).max(2), values.reshape(7, 5, -1).max(2)
    )


def test_one_bit_is_black_and_white():
    image = Image.fromarray(pixels(6, 6) > 128)
    assert image.mode == "1"
    wanted = torch.from_numpy(np.array(image)).float()[None]
    assert torch.equal(picture_tensor(image), wanted)
    assert torch.equal(picture_tensor(rgb_picture(image)), wanted.expand(3, -1, -1))


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV"])
def test_palettes_and_other_colour_spaces_become_rgb(mode):
    image = Image.new("RGB", (5, 4), COLOUR)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    assert image.mode == mode
    assert_colour(image, COLOUR, atol=3 / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_an_opaque_alpha_channel_changes_nothing(mode):
    base = Image.fromarray(pixels(16, 16) if mode[0] == "L" else pixels(16, 16, 3))
    if mode == "PA":
        base = base.quantize(64)
    image = base.convert(mode.upper())
    image.putalpha(255)
    image = image.convert(mode)
    assert image.mode == mode
    assert torch.equal(picture_tensor(image), picture_tensor(base))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_what_is_transparent_shows_white(mode):
    base = Image.new("L" if mode[0] == "L" else "RGB", (4, 2), 0)
    base = base.quantize(2) if mode == "PA" else base
    image = base.convert(mode.upper())
    alpha = np.array([[0, 51, 204, 255]] * 2, np.uint8)
    image.putalpha(Image.fromarray(alpha))
    found = picture_tensor(image.convert(mode))
    wanted = torch.from_numpy(1 - alpha / 255).float().expand(1 if mode[0] == "L" else 3, 2, 4)
    torch.testing.assert_close(found, wanted, atol=1 / 255, rtol=0)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_a_transparent_entry_of_a_palette_shows_white(tmp_path, transparency):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    image.putpalette([*COLOUR, 1, 2, 3])
    opened = saved(image, tmp_path / "1.png", transparency=transparency)
    assert opened.mode == "P"
    found = picture_tensor(opened)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor(COLOUR) / 255)
    assert torch.equal(found[:, 0, 1], torch.ones(3))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_colour_that_a_file_calls_transparent_shows_white(tmp_path, mode):
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), {"1": 1, "L": 128, "RGB": (9, 9, 9), "I;16": 999}[mode])
    clear = (0, 0, 0) if mode == "RGB" else 0
    opened = saved(image, tmp_path / "1.png", transparency=clear)
    assert opened.mode == mode and "transparency" in opened.info
    found = picture_tensor(opened)
    assert found.shape[0] == (3 if mode == "RGB" else 1) and bool((found[:, 0, 0] == 1).all())
    kept = {"1": 1, "L": 128 / 255, "RGB": 9 / 255, "I;16": 999 / 65535}[mode]
    torch.testing.assert_close(found[:, 0, 1], torch.full_like(found[:, 0, 1], kept))


# ------------------------------------------------------------------ orientation

TURNED = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0), 8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_the_exif_orientation_is_applied_once(tmp_path, orientation, ending):
    values = pixels(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"1.{ending}"
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(values).convert("RGB").save(path, exif=exif, **options)
    wanted = torch.from_numpy(TURNED[orientation](values).copy()).float() / 255
    with Image.open(path) as opened:
        picture = plain_picture(opened)
    for found in (picture_tensor(picture), picture_tensor(plain_picture(picture))):
        assert torch.equal(found, wanted.expand(3, -1, -1))


# ------------------------------------------------------------------ more than eight bits


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_divided_by_65535(tmp_path, ending):
    values = pixels(8, 9, dtype=np.uint16, top=65536)
    opened = saved(Image.fromarray(values), tmp_path / f"1.{ending}")
    wanted = torch.from_numpy(values / 65535).float()
    torch.testing.assert_close(picture_tensor(opened)[0], wanted, atol=1e-7, rtol=0)
    eight = np.asarray(rgb_picture(opened)) / 255
    assert eight.shape == (8, 9, 3) and np.abs(eight - wanted.numpy()[..., None]).max() < 0.51 / 255


def test_sixteen_bits_of_the_other_byte_order_are_read():
    values = pixels(4, 4, dtype=np.uint16, top=65536)
    image = Image.frombytes("I;16B", (4, 4), values.astype(">u2").tobytes())
    assert torch.equal(picture_tensor(image)[0], torch.from_numpy(values / 65535).float())


def test_float_files_in_the_unit_interval_stay(tmp_path):
    values = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    opened = saved(Image.fromarray(values), tmp_path / "1.tif")
    assert opened.mode == "F" and torch.equal(picture_tensor(opened)[0], torch.from_numpy(values))


@pytest.mark.parametrize("values", [[[0, 255.0]], [[-0.5, 0.5]], [[0, float("nan")]]])
def test_float_files_outside_the_unit_interval_are_refused(values):
    with pytest.raises(ValueError, match=r"mode 'F' with values from .* in \[0, 1\]"):
        picture_tensor(Image.fromarray(np.array(values, np.float32)))


@pytest.mark.parametrize("values", [[[0, 200]], [[-1000, 1000]], [[0, 100_000]]])
def test_integers_whose_white_is_not_known_are_refused(values):
    with pytest.raises(ValueError, match="what counts as white is not known"):
        picture_tensor(Image.fromarray(np.array(values, np.int32)))


# ------------------------------------------------------------------ arrays and tensors


@pytest.mark.parametrize("shape", [(3, 9, 7), (1, 9, 7), (4, 9, 7), (2, 9, 7), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, ">f4"])
def test_arrays_may_have_channels_first_or_last(shape, dtype):
    first = pixels(*shape) if dtype == np.uint8 else (pixels(*shape) / 256).astype(dtype)
    wanted = torch.from_numpy(first.astype(np.float32)) / (255 if dtype == np.uint8 else 1)
    for array in (first, first[:, ::-1][:, ::-1], first.transpose(1, 2, 0)):
        found = image_tensor(array)
        assert found.dtype == torch.float32 and torch.equal(found, wanted)
    assert torch.equal(image_tensor(first[0]), wanted[:1])


def test_flipped_arrays_keep_their_order():
    array = pixels(6, 5, 3)[:, ::-1]
    assert torch.equal(image_tensor(array), image_tensor(array.copy()))


@pytest.mark.parametrize("shape", [(3, 9, 3), (1, 9, 3), (8, 8, 8), (9, 4, 4), (12,), (0, 4, 3)])
def test_arrays_that_do_not_tell_their_channels_are_refused(shape):
    with pytest.raises(ValueError, match=r"channels|has to be \(H, W\)"):
        image_tensor(np.zeros(shape, np.float32))


def test_tensors_of_items_become_channels_first():
    floats = torch.rand(3, 9, 7)
    assert image_tensor(floats) is floats
    assert image_tensor(floats[0].double()).dtype == torch.float32
    nine_signals = torch.rand(9, 128, 1)
    assert image_tensor(nine_signals) is nine_signals
    maps = torch.rand(512, 4, 4)
    assert image_tensor(maps) is maps
    last = torch.from_numpy(pixels(9, 7, 3))
    assert torch.equal(image_tensor(last), last.permute(2, 0, 1))
    with pytest.raises(ValueError, match="channels last"):
        image_tensor(torch.rand(9, 7, 3))


@pytest.mark.parametrize("image", [
    np.zeros((4, 4), np.int64), torch.zeros(1, 4, 4, dtype=torch.int32),
    np.zeros((4, 4), np.uint16), np.zeros((4, 4), object),
])  # fmt: skip
def test_images_of_other_numbers_are_refused(image):
    with pytest.raises(ValueError, match=r"uint8|object"):
        image_tensor(image)


def test_what_is_no_image_is_refused():
    with pytest.raises(TypeError, match="got str"):
        image_tensor("1.png")


# ------------------------------------------------------------------ colour and range


def test_colour_becomes_grey_by_one_rule_in_benchmarks_and_encoders():
    images = torch.rand(2, 3, 4, 4)
    luma = 0.2989 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
    torch.testing.assert_close(recoloured(images, 1), luma)
    assert torch.equal(Preprocessing(1, None)(images), recoloured(images, 1))
    fitted = fit(LabelledImages(images, [0, 1]), (1, 4, 4), "resize").images
    assert torch.equal(fitted, recoloured(images, 1))


@pytest.mark.parametrize(("have", "wanted"), [(4, 1), (3, 4), (2, 3)])
def test_other_changes_of_channels_are_refused(have, wanted):
    with pytest.raises(ValueError, match=f"{have} channels cannot become images of {wanted}"):
        Preprocessing(wanted, None)(torch.rand(1, have, 4, 4))


def test_images_that_are_not_finite_or_bytes_as_floats_are_refused():
    assert check_range(torch.tensor([-2.5, 3.0]), "x") == (-2.5, 3.0)
    assert check_range(torch.tensor([0, 200], dtype=torch.uint8), "x") == (0, 200)
    assert check_range(torch.tensor([0, 200.5]), "x") == (0, 200.5)
    with pytest.raises(ValueError, match=r"x: floats from 0 to 200.*divide them by 255"):
        check_range(torch.tensor([0, 200.0]), "x")
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            check_range(torch.tensor([0.5, bad]), "x")
