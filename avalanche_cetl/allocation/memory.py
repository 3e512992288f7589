"""What the old experiences of a stream leave to hold: importances and the weights they are of.

What training reads is one quadratic, whatever the number of experiences. What is kept of single
experiences is for those who read it, and for gates that are drawn anew: it lies on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.allocation.directions import DirectionSum
from avalanche_cetl.allocation.measure import gate
from avalanche_cetl.allocation.parameters import anchors_of, grown
from avalanche_cetl.allocation.proximal import Pull
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.information.generalized import mean_importance, normalize_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis

Weights = dict[str, Tensor]
#: The tasks whose heads an experience has; empty for a network without heads by task.
Heads = tuple[int, ...]


class Bases(dict[int, KroneckerBasis]):
    """The bases of single experiences, which a checkpoint keeps."""

    def state_dict(self) -> dict[int, Any]:
        """Return them as plain data."""
        return {experience: basis.state_dict() for experience, basis in self.items()}

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Take those of a state."""
        self.clear()
        for experience, one in state.items():
            self[experience] = KroneckerBasis({})
            self[experience].load_state_dict(one)


class Memory(ABC):
    """Importances and weights of old experiences, and the pull that is made of them.

    :param settings: how importances are gated and rescaled.
    :param decay: factor of the old importance when a new one comes: one for all experiences
        (``mode="online"``); None: one for each (``mode="separate"``).
    :param keep: keep those of past experiences, which training no longer reads.
    :ivar importances: per experience, Fisher information by parameter name.
    :ivar saved_params: per experience, the weights that it was measured at, in float32 at least.
    :ivar bases: per experience, the basis of its importance; empty where it is weight by weight.
    :ivar shared: per old experience, the share in [0, 1] of weights or directions with RF >= u.
    :ivar pull: what the current experience holds.
    """

    def __init__(self, settings: GFISettings, decay: float | None, keep: bool):
        self.settings, self.decay, self.keep = settings, decay, keep
        self.importances: dict[int, Weights] = {}
        self.saved_params: dict[int, Weights] = {}
        self.bases = Bases()
        self.shared: dict[int, dict[str, float]] = {}
        self.pull = Pull()
        self._heads: dict[int, Heads] = {}
        self._holds = False

    def old(self, now: int) -> list[int]:
        """Return the experiences whose importance is held in experience ``now``."""
        known = [e for e in self.importances if e < now]
        return known if self.decay is None else known[-1:]

    @abstractmethod
    def heads(self, now: int) -> list[Heads]:
        """Return whose relative Fisher information with a new experience is asked for."""

    @property
    @abstractmethod
    def basis(self) -> KroneckerBasis | None:
        """Return the basis that it is asked for in."""

    @abstractmethod
    def names(self, now: int) -> set[str]:
        """Return the names of the parameters that are held."""

    @abstractmethod
    def grow(self, params: Weights) -> None:
        """Bring all to the shapes of a network that may have grown.

        :raises ValueError: when a parameter has shrunk.
        """

    @abstractmethod
    def hold(
        self,
        now: int,
        params: Weights,
        relative: Mapping[Heads, Weights],
        generator: torch.Generator,
    ) -> None:
        """Make the pull of experience ``now``.

        :param params: the network's, of those that are held, after :meth:`grow`.
        :param relative: relative Fisher information, where there is a gate.
        :param generator: of the gate's draws.
        """

    @property
    @abstractmethod
    def gated(self) -> dict[int, Weights]:
        """Return per old experience its importance as it is held; empty between experiences."""

    @abstractmethod
    def add(
        self,
        now: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take the experience in that ends.

        :param now: number of the experience, from 0.
        :param fisher: its importance, in ``basis``.
        :param basis: None: the weights' own.
        :param params: the weights that were measured.
        :param heads: of the tasks that the network had when it was measured.
        """

    def _forget(self, now: int) -> None:
        """Drop what is no longer read, and what was held."""
        self._holds = False
        if now > 0 and not self.keep:
            for kept in (self.importances, self.saved_params, self.bases):
                kept.pop(now - 1, None)


class DiagonalMemory(Memory):
    """Importances weight by weight, each with its own anchor: their sum is one quadratic."""

    def __init__(self, settings: GFISettings, decay: float | None, keep: bool):
        super().__init__(settings, decay, keep)
        self._gates: dict[int, Weights] = {}  # the entries that are kept, as bits
        self._summed = -1

    def heads(self, now: int) -> list[Heads]:
        """Return every set of heads that an old experience has, once."""
        return list(dict.fromkeys(self._heads[e] for e in self.old(now)))

    @property
    def basis(self) -> None:
        """Return None: relative Fisher information is asked for weight by weight."""
        return None

    def names(self, now: int) -> set[str]:
        """Return the names of the parameters that are held."""
        return {name for experience in self.old(now) for name in self.importances[experience]}

    def hold(
        self,
        now: int,
        params: Weights,
        relative: Mapping[Heads, Weights],
        generator: torch.Generator,
    ) -> None:
        """Gate every old importance, and add all of them up.

        Without a gate the sum of the last experience goes on: only what came since is added.
        """
        if self.settings.gates or self.decay is not None:
            self.pull, self._summed = Pull(), -1
        self._gates, self.shared, self._holds = {}, {}, True
        for experience in self.old(now):
            if experience <= self._summed:
                continue
            held = self._held(experience, params)
            rf = relative.get(self._heads[experience])
            gated, shared = gate(held, rf, self.settings, generator)
            if rf is not None:
                self.shared[experience] = shared
                self._gates[experience] = _bits(gated)
            anchors = self.saved_params[experience]
            self.pull.add(gated, {n: anchors[n].to(gated[n].device) for n in gated})
            self._summed = experience

    def grow(self, params: Weights) -> None:
        """Bring weights to the shapes of a network that may have grown, the pull to its device."""
        for kept in (*self.saved_params.values(), self.pull.importance, self.pull.anchors):
            for name, value in kept.items():
                if name in params:
                    kept[name] = grown(value, params[name])
        for kept in (self.pull.importance, self.pull.anchors):
            kept.update({n: v.to(params[n].device) for n, v in kept.items() if n in params})

    def _held(self, experience: int, params: Mapping[str, Tensor]) -> Weights:
        """Return the importance of an experience in today's shapes, where the weights are."""
        return {
            name: grown(value, params[name]).to(params[name].device)
            for name, value in self.importances[experience].items()
            if name in params
        }

    @property
    def gated(self) -> dict[int, Weights]:
        """Return per old experience its importance as it is held; empty between experiences."""
        if not self._holds:
            return {}
        found = {}
        for experience in self.old(self._summed + 1):
            held = self._held(experience, self.pull.importance)
            if experience in self._gates:
                held = _kept(self._gates[experience], held)
            found[experience] = normalize_importance(held) if self.settings.normalize else held
        return found

    def add(
        self,
        now: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take the experience in that ends; where there is one for all, the old one fades."""
        anchors = {name: value.cpu() for name, value in anchors_of(params).items()}
        fisher = {name: value.cpu() for name, value in fisher.items()}
        if self.decay is not None:
            anchors = self.saved_params.get(now - 1, {}) | anchors
            fisher = self._faded(fisher, now)
        self.importances[now], self.saved_params[now], self._heads[now] = fisher, anchors, heads
        self._gates = {}
        if self.settings.gates or self.decay is not None:
            self.pull, self._summed = Pull(), -1
        self._forget(now)

    def _faded(self, fisher: Weights, now: int) -> Weights:
        assert self.decay is not None
        old = self.importances.get(now - 1, {})
        merged = {
            name: value + self.decay * grown(old[name], value) if name in old else value
            for name, value in fisher.items()
        }
        # Frozen for now, or not in the model any more: what was there fades, but stays.
        return {n: self.decay * v for n, v in old.items() if n not in fisher} | merged


class KroneckerMemory(Memory):
    """Importances by direction: one sum of limited rank, around the newest weights.

    With ``mode="separate"`` every experience counts as much as any other, with ``"online"`` old
    ones fade; in both there is one sum and one gate. See
    :mod:`~avalanche_cetl.allocation.directions`.
    """

    def __init__(self, settings: GFISettings, decay: float | None, keep: bool):
        super().__init__(settings, decay, keep)
        self._sum = DirectionSum(settings.rank)
        self._anchors: Weights = {}
        self._last = -1

    def heads(self, now: int) -> list[Heads]:
        """Return the heads of all old experiences together: they have one gate."""
        if self._last < 0:
            return []
        return [tuple(sorted({head for heads in self._heads.values() for head in heads}))]

    @property
    def basis(self) -> KroneckerBasis:
        """Return the basis of the sum."""
        return self._sum.basis

    def names(self, now: int) -> set[str]:
        """Return the names of the parameters that are held."""
        return set(self._sum.importance) | self._sum.basis.folded

    def hold(
        self,
        now: int,
        params: Weights,
        relative: Mapping[Heads, Weights],
        generator: torch.Generator,
    ) -> None:
        """Gate the sum."""
        self._holds, self.shared = True, {}
        if self._last < 0:
            return
        importance = self._sum.importance
        for rf in relative.values():
            importance, self.shared[self._last] = self._gated(importance, rf, generator)
        self.pull = Pull.within(self._sum.basis, importance, self._anchors)

    def grow(self, params: Weights) -> None:
        """Bring sum and anchors to the shapes of a network that may have grown, on its device."""
        self._sum.grow({name: p.shape for name, p in params.items()})
        for name, value in self._anchors.items():
            if name in params:
                self._anchors[name] = grown(value, params[name]).to(params[name].device)
        if params:
            self._sum.to(next(iter(params.values())).device)

    def _gated(
        self, importance: Weights, relative: Weights, generator: torch.Generator
    ) -> tuple[Weights, dict[str, float]]:
        """Gate the sum; the mean of what is left is what the mean of all was."""
        measured = {name: value for name, value in importance.items() if name in relative}
        found, shared = gate(measured, relative, self.settings, generator, self.basis)
        if self.settings.normalize:
            mean = mean_importance(measured, self.basis)
            found = {name: value * mean for name, value in found.items()}
        return importance | found, shared

    @property
    def gated(self) -> dict[int, Weights]:
        """Return the sum as it is held, by the last experience; empty between experiences."""
        return {self._last: self.pull.importance} if self._holds and self._last >= 0 else {}

    def add(
        self,
        now: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take the experience in that ends, after it was rescaled where the settings want it."""
        assert basis is not None
        own = normalize_importance(fisher, basis) if self.settings.normalize else fisher
        shapes = {name: p.shape for name, p in params.items()}
        self._sum.add(own, basis, shapes, 1.0 if self.decay is None else self.decay)
        newest = anchors_of(params)
        self._anchors = self._anchors | newest
        if self.decay is not None:
            fisher, basis, newest = self._sum.importance, self._sum.basis, self._anchors
        self.importances[now] = {name: value.cpu() for name, value in fisher.items()}
        self.saved_params[now] = {name: value.cpu() for name, value in newest.items()}
        self.bases[now] = basis.to("cpu")
        self._heads[now], self._last = heads, now
        self.pull = Pull()
        self._forget(now)


def _bits(gated: Weights) -> Weights:
    """Return which entries are not zero, an eighth of a byte for each."""
    return {
        name: torch.from_numpy(np.packbits((value != 0).cpu().numpy()))
        for name, value in gated.items()
    }


def _kept(bits: Weights, held: Weights) -> Weights:
    """Return importances with 0 where a gate keeps nothing."""
    found = {}
    for name, value in held.items():
        mask = torch.from_numpy(np.unpackbits(bits[name].numpy(), count=value.numel()))
        found[name] = value * mask.reshape(value.shape).to(value.device)
    return found
