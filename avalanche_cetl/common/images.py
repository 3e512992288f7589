"""From a picture, an array or a tensor to the image that is kept: one rule for all rooms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale, to_tensor

#: Modes of PIL with more than 8 bits a channel, and what their values are divided by.
_DEEP = {"I;16": 65535, "I;16L": 65535, "I;16B": 65535, "I;16N": 65535, "I": 65535, "F": 1}


def plain_picture(image: Image.Image) -> Image.Image:
    """Return a copy of a picture that is upright, without palette and without transparency.

    The EXIF orientation is applied. Palettes, CMYK and other colour spaces become RGB. What is
    transparent shows white, as on a page; an opaque picture keeps its colours to the bit. Modes
    ``1``, ``L`` and ``RGB``, 16-bit and float pictures keep their mode.

    :param image: of any mode and orientation; of several frames the present one.
    :return: a picture in memory, without the name of its file.
    :raises ValueError: for a colour space that PIL cannot turn into RGB.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP:
        return upright
    if upright.has_transparency_data:
        return _on_white(upright)
    return upright if upright.mode in ("1", "L", "RGB") else upright.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("La", "RGBa"):  # colours are multiplied by alpha already
        image = image.convert(image.mode.upper())
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.getchannel("R") if image.mode in ("1", "L", "LA") else page.convert("RGB")


def picture_tensor(image: Image.Image) -> Tensor:
    """Return a PIL image as single floats in [0, 1].

    It is made plain first (:func:`plain_picture`). 8-bit values are divided by 255, 16-bit ones by
    65535. Floats have to be in [0, 1], and stay as they are.

    :return: ``(1, H, W)`` or ``(3, H, W)``.
    :raises ValueError: for floats outside [0, 1], and for integers of mode ``I`` (32 bits) that
        do not show by their range that they are 16-bit values.
    """
    picture = plain_picture(image)
    if picture.mode not in _DEEP:
        result: Tensor = to_tensor(picture).float()
        return result
    values = np.array(picture).astype(np.float64)
    clear = picture.info.get("transparency")
    if clear is not None and picture.mode != "F":
        values[values == clear] = 65535  # white
    _check_deep(values, picture.mode)
    return torch.from_numpy((values / _DEEP[picture.mode]).astype(np.float32))[None]


def _check_deep(values: np.ndarray, mode: str) -> None:
    low, high = float(values.min()), float(values.max())
    told = f"a picture of mode {mode!r} with values from {low:g} to {high:g}"
    if mode == "F" and not (low >= 0 and high <= 1):
        raise ValueError(f"{told}: floats have to be in [0, 1]; scale them, and save it again.")
    # PIL gives 16-bit PGM files, and in old versions PNG files, in mode I.
    if mode == "I" and (low < 0 or high > 65535 or 0 < high <= 255):
        raise ValueError(
            f"{told}: what counts as white is not known; save it with 8 bits (mode 'L'), with 16 "
            "bits (mode 'I;16'), or as floats in [0, 1] (mode 'F')."
        )


def rgb_picture(image: Image.Image) -> Image.Image:
    """Return a plain picture in RGB with 8 bits a channel, as transforms of pictures expect it.

    :raises ValueError: as :func:`picture_tensor` does.
    """
    picture = plain_picture(image)
    if picture.mode in _DEEP:
        values = picture_tensor(picture)[0].mul(255).round().to(torch.uint8)
        picture = Image.fromarray(values.numpy())
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def image_tensor(image: Any) -> Tensor:
    """Return an image of any kind as a tensor with its channels first.

    :param image: a PIL image; an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` of bytes or
        floats; or a tensor ``(H, W)`` or ``(C, H, W)`` of them, bytes also ``(H, W, C)``.
    :return: ``(C, H, W)``: single floats in [0, 1] of PIL images and arrays of bytes; float arrays
        and tensors as single floats, and tensors of bytes, as they are. Tensors with another
        number of dimensions come back in their shape.
    :raises ValueError: for other types of numbers, other shapes of arrays, and shapes that do not
        tell where the channels are.
    :raises TypeError: for anything else.
    """
    if isinstance(image, Image.Image):
        return picture_tensor(image)
    if isinstance(image, np.ndarray):
        tensor = _first(image)
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    if not isinstance(image, Tensor):
        raise TypeError(
            f"an image has to be a PIL image, an array or a tensor; got {type(image).__name__}."
        )
    check_type(image.dtype)
    if image.dim() == 3 and _seems_last(image.shape):
        if image.dtype != torch.uint8 or image.shape[-1] == 4:
            raise ValueError(
                f"an image of shape {tuple(image.shape)} and type {image.dtype} seems to have its "
                "channels last; bring it to (C, H, W)."
            )
        image = image.permute(2, 0, 1).contiguous()
    if image.dim() == 2:
        image = image.unsqueeze(0)
    result: Tensor = image if image.dtype == torch.uint8 else image.float()
    return result


def check_type(dtype: Any) -> None:
    """Raise ValueError unless images are bytes or floats."""
    if dtype != torch.uint8 and not dtype.is_floating_point:
        raise ValueError(
            f"images have to be uint8 or floats, got {dtype}; give bytes as uint8, and divide "
            "16-bit integers by 65535."
        )


def _first(array: np.ndarray) -> Tensor:
    """An array as a tensor with its channels first."""
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"an image that is an array has to be (H, W), (H, W, C) or (C, H, W); got shape "
            f"{array.shape}."
        )
    tensor = array_tensor(array)
    check_type(tensor.dtype)
    if array.ndim == 2:
        return tensor[None]
    return tensor.permute(2, 0, 1).contiguous() if channels_last(array.shape) else tensor


def array_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor, whatever its strides and byte order.

    :raises ValueError: for types that torch does not know, such as objects.
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        return torch.from_numpy(np.ascontiguousarray(native))
    except TypeError as problem:
        raise ValueError(f"an array of {array.dtype} is no image: {problem}") from problem


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether an array of three dimensions is ``(H, W, C)``, else ``(C, H, W)``.

    Grey and colour are known by their 1 or 3 channels. For other numbers, channels are the side
    that is shorter than both others.

    :raises ValueError: where the shape fits both.
    """
    first, _, last = shape
    if (first in (1, 3)) != (last in (1, 3)):
        return last in (1, 3)
    if first not in (1, 3) and last < min(shape[:2]):
        return True
    if first not in (1, 3) and first < min(shape[1:]):
        return False
    raise ValueError(
        f"an array of shape {tuple(shape)} does not tell where its channels are; give a torch "
        "tensor (C, H, W)."
    )


def _seems_last(shape: torch.Size) -> bool:
    """Whether a tensor is surely no ``(C, H, W)``; a signal ``(C, time, 1)`` may be one."""
    first, height, last = shape
    if first in (1, 3, 4):
        return False
    return (last in (3, 4) and height > last) or (last == 1 and first == height > 1)


def check_range(images: Tensor, what: str) -> tuple[float, float]:
    """Check that images are finite, and no bytes that were turned into floats and not divided.

    Standardised floats, which are negative in part, are as good as those in [0, 1].

    :param images: any shape, not empty.
    :param what: names them in the error.
    :return: the least and the largest value.
    :raises ValueError: for values that are not finite, and for floats that are all whole numbers
        in 0 ... 255, some in the upper half.
    """
    low, high = (value.item() for value in images.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"{what}: there are values that are not finite (NaN or infinity); mend or drop them."
        )
    bytes_once = images.is_floating_point() and low >= 0 and 128 <= high <= 255
    if bytes_once and torch.equal(images, images.round()):
        raise ValueError(
            f"{what}: floats from {low:g} to {high:g}, all whole numbers, are bytes that were not "
            "scaled; give them as uint8, or divide them by 255."
        )
    return low, high


def recoloured(images: Tensor, channels: int) -> Tensor:
    """Return images with another number of channels.

    Grey becomes colour by repeating its channel. Colour becomes grey by ITU-R 601 luma, as in PIL
    and torchvision: 0.2989 R + 0.587 G + 0.114 B.

    :param images: ``(N, C, H, W)`` floats.
    :param channels: wanted; 1 of 3, or any number of 1.
    :return: ``(N, channels, H, W)``; the same tensor where it has them already.
    :raises ValueError: for any other change.
    """
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1:
        return images.expand(-1, channels, -1, -1)
    if have == 3 and channels == 1:
        result: Tensor = rgb_to_grayscale(images)
        return result
    raise ValueError(f"images of {have} channels cannot become images of {channels}.")
