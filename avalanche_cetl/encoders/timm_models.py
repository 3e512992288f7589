"""timm models with weights: from the hub, a file or a package, loaded strictly."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from torch import Tensor

from avalanche_cetl.encoders.weights import load_strictly, packaged_state, read_weights


class DownloadError(ValueError):
    """Weights could not be downloaded.

    :param name: of the timm model.
    :param problem: why.
    """

    def __init__(self, name: str, problem: Exception):
        self.said = f"the weights of {name!r} could not be downloaded: {problem}"
        super().__init__(
            f"{self.said}\n"
            "Remedies: download them where there is a network and give the file as "
            "weights='file.safetensors', or take a model whose weights are in a package "
            "(weights='package'), or pretrained=False for random weights."
        )


def create(
    name: str,
    pretrained: bool,
    weights: str | Path | None,
    *,
    pool: str | int | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> torch.nn.Module:
    """Return a timm model with its weights.

    :param name: of the model in timm.
    :param pretrained: whether timm's own weights are loaded, where ``weights`` is None.
    :param weights: a file of weights, or ``"package"``; None: timm's.
    :param pool: a string goes to timm as ``global_pool``.
    :param num_classes: of the weights; None for the model's own number, 0 for no classifier
        (one in the weights is left out).
    :param in_chans: channels that the model reads; None for its own.
    :raises DownloadError: when timm's weights cannot be had; a ValueError.
    :raises ValueError: for an unknown name, and weights that do not fit; the message names the
        argument that makes them fit.
    """
    check_name(name)
    options: dict[str, Any] = {"global_pool": pool} if isinstance(pool, str) else {}
    for word, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{word}={value!r} has to be a whole number >= {least}, or None.")
        options[word] = value
    download = pretrained and weights is None
    if download or weights == "package":
        _check_own_classes(name, num_classes)
    try:
        if download:
            _reach_hub(name)
        module = timm.create_model(name, pretrained=download, **options)
    except Exception as problem:
        if not download:
            raise ValueError(f"timm could not build {name!r}: {problem}") from problem
        raise DownloadError(name, problem) from problem
    if weights is not None:
        packaged = weights == "package"
        state = packaged_state(module, name) if packaged else read_weights(weights)
        _load(module, state, num_classes, f"the weights {str(weights)!r} and {name!r}")
    return module


def _reach_hub(name: str) -> None:
    """Ask the hub for an answer, unless the weights are here: a download tries for a minute."""
    place = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    files = ("model.safetensors", "pytorch_model.bin")
    if place and not any(isinstance(try_to_load_from_cache(place, file), str) for file in files):
        get_session().head(constants.ENDPOINT, timeout=10)


def check_name(name: str) -> None:
    """Raise ValueError, with similar names, unless timm has a model of this name."""
    if timm.is_model(name):
        return
    bare = name.split(".")[0]
    near = difflib.get_close_matches(bare, timm.list_models(), n=5)
    hint = f"near it: {', '.join(near)}" if near else "see timm.list_models()"
    raise ValueError(f"{name!r} is no timm model; {hint}.")


def _check_own_classes(name: str, num_classes: int | None) -> None:
    own = getattr(timm.get_pretrained_cfg(name), "num_classes", None)
    if num_classes in (None, 0, own):
        return
    raise ValueError(
        f"num_classes={num_classes}, but the pretrained weights of {name!r} have {own} classes, so "
        "its classifier would be random. Leave num_classes out, say num_classes=0 for no "
        "classifier, or give the file of a network that was trained on those classes as weights=."
    )


def _load(
    module: torch.nn.Module, state: Mapping[str, Tensor], num_classes: int | None, what: str
) -> None:
    heads = _layers(module, "classifier")
    if num_classes == 0:
        state = {n: t for n, t in state.items() if not n.startswith(tuple(f"{h}." for h in heads))}
    try:
        load_strictly(module, state, what)
    except ValueError as problem:
        remedies = _remedies(module, state, heads)
        raise ValueError("\n".join([str(problem), *remedies])) from problem


def _remedies(
    module: torch.nn.Module, state: Mapping[str, Tensor], heads: tuple[str, ...]
) -> list[str]:
    own = module.state_dict()
    found = []
    for head in heads[:1]:
        mine, theirs = own.get(f"{head}.weight"), state.get(f"{head}.weight")
        if mine is not None and theirs is None:
            found.append("These weights have no classifier: give num_classes=0.")
        elif mine is not None and theirs is not None and len(mine) != len(theirs):
            found.append(
                f"These weights have {len(theirs)} classes: give num_classes={len(theirs)}."
            )
    for first in _layers(module, "first_conv"):
        mine, theirs = own.get(f"{first}.weight"), state.get(f"{first}.weight")
        if mine is None or theirs is None or mine.dim() < 2 or theirs.dim() < 2:
            continue
        if mine.shape[1] != theirs.shape[1]:
            channels = theirs.shape[1]
            found.append(f"These weights read {channels} channels: give in_chans={channels}.")
    return found


def _layers(module: torch.nn.Module, kind: str) -> tuple[str, ...]:
    """Return the names of the model's classifiers or first convolutions, as timm lists them."""
    names = (getattr(module, "pretrained_cfg", None) or {}).get(kind) or ()
    return (names,) if isinstance(names, str) else tuple(names)
