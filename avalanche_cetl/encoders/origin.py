"""Which network features are of: its fingerprint, and what it answers when it is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from avalanche_cetl.encoders.base import KEPT, Encoder

#: Share of their size by which answers of one network may differ: a network in half precision
#: gives others by some 0.01 on another device.
_TOLERANCE = 0.02
_Asked = tuple[str, tuple[int, ...], str]
#: By encoder, what it has answered; it is frozen, so it is asked once.
_answers: WeakKeyDictionary[Encoder, dict[_Asked, tuple[float, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Origin:
    """A frozen network that can be known again, in this process or another.

    A fingerprint sees structure and weights. What else decides what a network computes is not
    written in one place: hooks, settings that the representation leaves out, code, and what the
    code reads. So it is asked: what it gives for two images of noise is compared, within 2 %.

    :ivar fingerprint: of the encoder.
    :ivar shape: of an image, such as ``(C, H, W)``.
    :ivar dtype: of the images, such as ``"float32"``.
    :ivar answers: see :meth:`Encoder.answers`; none of an encoder that cannot run.
    """

    fingerprint: str
    shape: Sequence[int] = ()
    dtype: str = "float32"
    answers: Sequence[float] = ()

    @classmethod
    def of(cls, encoder: Encoder, shape: Sequence[int], dtype: torch.dtype) -> Origin:
        """Return an encoder's, which is asked about images of a shape and a type."""
        fingerprint, name = encoder.fingerprint(), str(dtype).removeprefix("torch.")
        asked = fingerprint, tuple(int(size) for size in shape), name
        known = _answers.setdefault(encoder, {})
        if asked not in known:
            known[asked] = encoder.answers(asked[1], dtype)
        return cls(*asked, known[asked])

    def is_of(self, encoder: Encoder) -> bool:
        """Return whether it is the one of this encoder."""
        same = self.fingerprint == encoder.fingerprint()
        if not same or not self.answers:
            return same
        return self.agrees(Origin.of(encoder, self.shape, getattr(torch, self.dtype)))

    def agrees(self, other: Origin) -> bool:
        """Return whether two may be of one network."""
        if self.fingerprint != other.fingerprint or len(self.answers) != len(other.answers):
            return False
        one, its = (torch.tensor(o.answers).reshape(-1, KEPT).nan_to_num() for o in (self, other))
        return bool(((one - its).norm(dim=1) <= _TOLERANCE * its.norm(dim=1)).all())

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | str) -> Origin:
        """Return it from plain data, or, as version 0.2 kept it, from the fingerprint alone."""
        return cls(state) if isinstance(state, str) else cls(**state)
