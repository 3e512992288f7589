"""Which network features are of: its fingerprint, and what it answers when it is asked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from avalanche_cetl.common.seeds import seeded

logger = logging.getLogger(__name__)

#: Share of their size by which features of one network may differ: a network in half precision
#: gives others by some 0.01 on another device.
_TOLERANCE = 0.02
_Asked = tuple[str, tuple[int, ...], str]
_Answers = tuple[tuple[float, ...], ...]
#: By encoder, what it has answered: it is frozen, so it need not be asked in every experience.
_answers: WeakKeyDictionary[nn.Module, dict[_Asked, _Answers]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Origin:
    """A frozen network that can be known again, in this process or another.

    A fingerprint sees structure and weights. What else decides what a network computes is not
    written in one place: hooks, settings that the representation leaves out, code, and what the
    code reads. So it is asked: its features of two images of noise are compared, within 2 %. Of a
    network that cannot run on such images the fingerprint alone counts.

    :ivar fingerprint: of the encoder.
    :ivar shape: of an image, such as ``(C, H, W)``.
    :ivar dtype: of the images, such as ``"float32"``.
    :ivar answers: eight numbers of either image; none of a network that cannot run.
    """

    fingerprint: str
    shape: Sequence[int] = ()
    dtype: str = "float32"
    answers: Sequence[Sequence[float]] = ()

    @classmethod
    def of(
        cls, encoder: Any, shape: Sequence[int], dtype: torch.dtype, again: bool = False
    ) -> Origin:
        """Return an encoder's.

        :param encoder: S.
        :param shape: of the images that it is asked about.
        :param dtype: their type.
        :param again: ask it, though it has answered before: it may have got a hook since.
        """
        name = str(dtype).removeprefix("torch.")
        return cls._asked(encoder, encoder.fingerprint(), shape, name, again)

    @classmethod
    def _asked(
        cls, encoder: Any, fingerprint: str, shape: Sequence[int], dtype: str, again: bool = False
    ) -> Origin:
        asked = fingerprint, tuple(int(size) for size in shape), dtype
        known = _answers.setdefault(encoder, {})
        if again or asked not in known:
            known[asked] = _answers_of(encoder, asked[1], getattr(torch, dtype))
        return cls(*asked, known[asked])

    def is_of(self, encoder: Any) -> bool:
        """Return whether it is the one of this encoder."""
        fingerprint = encoder.fingerprint()
        if fingerprint != self.fingerprint or not self.answers:
            return bool(fingerprint == self.fingerprint)
        return self.agrees(self._asked(encoder, fingerprint, self.shape, self.dtype))

    def agrees(self, other: Origin) -> bool:
        """Return whether two may be of one network."""
        one, its = (torch.tensor(o.answers, dtype=torch.float64) for o in (self, other))
        return self.fingerprint == other.fingerprint and same_features(one, its)

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | str) -> Origin:
        """Return it from plain data, or, as version 0.2 kept it, from the fingerprint alone."""
        return cls(state) if isinstance(state, str) else cls(**state)


def same_features(one: Tensor, other: Tensor) -> bool:
    """Return whether features ``(N, D)`` may be of one network: each row within 2 %."""
    if one.shape != other.shape:
        return False
    first, second = (value.double().nan_to_num() for value in (one, other))
    apart = torch.linalg.vector_norm(first - second, dim=-1)
    return bool((apart <= _TOLERANCE * torch.linalg.vector_norm(second, dim=-1)).all())


def _answers_of(encoder: Any, shape: tuple[int, ...], dtype: torch.dtype) -> _Answers:
    try:
        with torch.no_grad(), seeded("noise"):
            return tuple(map(tuple, encoder._answer_noise(shape, dtype).tolist()))
    except Exception as problem:  # a user's network, which was made for other images
        logger.debug("%s cannot be asked: %s", type(encoder).__name__, problem)
        return ()
