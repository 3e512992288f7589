"""Weights from local files: plain tensors only, loaded strictly."""

from __future__ import annotations

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
