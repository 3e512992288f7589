"""What old tasks leave to hold: importances and the weights they are of.

What training reads is one quadratic, whatever the number of tasks. What is kept of single tasks is
for those who read it, and for gates that are drawn anew: it lies on the CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_cetl.allocation.measure import Weights, gate
from avalanche_cetl.allocation.parameters import anchors_of, basis_of, grown
from avalanche_cetl.allocation.proximal import QuadraticPenalty
from avalanche_cetl.allocation.sample import Heads
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.information.generalized import normalize_importance
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis


class ImportanceStore(ABC):
    """Importances and weights of old tasks, and the quadratic that is made of them.

    :param settings: how importances are gated and rescaled.
    :param decay: factor of the old importance when a new one comes: one for all tasks
        (``mode="online"``); None: one for each (``mode="separate"``).
    :param keep: keep those of past tasks, which training no longer reads.
    :ivar importances: per task, in the order in which they came, Fisher information by parameter
        name.
    :ivar saved_params: per task, the weights that it was measured at, in float32 at least.
    :ivar bases: per task, the basis of its importance; empty where it is weight by weight.
    :ivar shared: per old task, the share in [0, 1] of weights or directions with RF >= u.
    :ivar quadratic: what the current task holds.
    :ivar holds: whether the quadratic is that of all old tasks, gated.
    """

    def __init__(self, settings: GFISettings, decay: float | None, keep: bool):
        self.settings, self.decay, self.keep = settings, decay, keep
        self.importances: dict[int, Weights] = {}
        self.saved_params: dict[int, Weights] = {}
        self.bases: dict[int, KroneckerBasis] = {}
        self.shared: dict[int, dict[str, float]] = {}
        self.quadratic = QuadraticPenalty()
        self.holds = False
        self._heads: dict[int, Heads] = {}

    @abstractmethod
    def heads(self) -> list[Heads]:
        """Return whose relative Fisher information with a new task is asked for."""

    @property
    @abstractmethod
    def basis(self) -> KroneckerBasis | None:
        """Return the basis that it is asked for in."""

    @property
    @abstractmethod
    def names(self) -> set[str]:
        """Return the names of the parameters that are held."""

    @abstractmethod
    def grow(self, params: Weights) -> None:
        """Bring all to the shapes of a network that may have grown, and to its device.

        :raises ValueError: when a parameter has shrunk.
        """

    @abstractmethod
    def hold(
        self, params: Weights, relative: Mapping[Heads, Weights], generator: torch.Generator
    ) -> None:
        """Make the quadratic of the task that begins.

        :param params: the network's, of those that are held, after :meth:`grow`.
        :param relative: relative Fisher information, where there is a gate.
        :param generator: of the gate's draws.
        """

    @abstractmethod
    def join(self) -> None:
        """Bring what is held into one quadratic, where it is in two."""

    @property
    @abstractmethod
    def gated(self) -> dict[int, Weights]:
        """Return per old task its importance as it is held; empty between tasks."""

    @abstractmethod
    def add(
        self,
        number: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take in the task that ends.

        :param number: under which it is kept.
        :param fisher: its importance, in ``basis``.
        :param basis: None: the weights' own.
        :param params: the weights that were measured.
        :param heads: that the network had for it when it was measured.
        """

    @property
    def numbers(self) -> Set[int]:
        """Return the numbers of all tasks so far, also of those whose importances are gone."""
        return self._heads.keys()

    @property
    def total(self) -> float:
        """Return how many tasks the sum of all is of; one that has faded counts as what is left."""
        decay = 1.0 if self.decay is None else self.decay
        return sum(decay**age for age in range(len(self._heads)))

    def movement(self, params: Mapping[str, Tensor]) -> float:
        """Return the root of the quadratic, without damping, as a mean over tasks.

        :param params: the network's, of those that are held.
        """
        return math.sqrt(float(self.quadratic.penalty(params, 2.0, damped=False)) / self.total)

    def _last(self) -> int | None:
        """Return the number of the task that came last; None before there is one."""
        return next(reversed(self.importances), None)

    def _forget(self, number: int) -> None:
        """Drop what is no longer read once a task has come in, and what was held."""
        self.holds = False
        if not self.keep:
            for kept in (self.importances, self.saved_params, self.bases):
                for old in [one for one in kept if one != number]:
                    del kept[old]

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return {
            "importances": self.importances,
            "saved_params": self.saved_params,
            "bases": {number: basis.state_dict() for number, basis in self.bases.items()},
            "shared": self.shared,
            "heads": self._heads,
            "holds": self.holds,
            "quadratic": self.quadratic.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of a state."""
        state = deepcopy(dict(state))
        self.importances, self.saved_params = state["importances"], state["saved_params"]
        self.bases = {number: basis_of(one) for number, one in state["bases"].items()}
        self.shared, self._heads = state["shared"], state["heads"]
        self.holds = bool(state["holds"])
        self.quadratic.load_state_dict(state["quadratic"])


class DiagonalStore(ImportanceStore):
    """Importances weight by weight, each with its own anchor: their sum is one quadratic."""

    def __init__(self, settings: GFISettings, decay: float | None, keep: bool):
        super().__init__(settings, decay, keep)
        self._gates: dict[int, Weights] = {}  # the entries that are kept, as bits
        self._summed = 0  # how many old tasks are in the quadratic

    def _old(self) -> list[int]:
        """Return the tasks whose importances are held: all, or the one that stands for all."""
        known = list(self.importances)
        return known if self.decay is None else known[-1:]

    def heads(self) -> list[Heads]:
        """Return every set of heads that an old task has, once."""
        return list(dict.fromkeys(self._heads[task] for task in self._old()))

    @property
    def basis(self) -> None:
        """Return None: relative Fisher information is asked for weight by weight."""
        return None

    @property
    def names(self) -> set[str]:
        """Return the names of the parameters that are held."""
        return {name for task in self._old() for name in self.importances[task]}

    def hold(
        self, params: Weights, relative: Mapping[Heads, Weights], generator: torch.Generator
    ) -> None:
        """Gate every old importance, and add all of them up.

        Without a gate the sum of the last task goes on: only what came since is added.
        """
        self._start_again()
        self._gates, self.shared, self.holds = {}, {}, True
        for task in self._old()[self._summed :]:
            held = self._held(task, params)
            rf = relative.get(self._heads[task])
            gated, shared = gate(held, rf, self.settings, generator)
            if rf is not None:
                self.shared[task] = shared
                self._gates[task] = _bits(gated)
            anchors = self.saved_params[task]
            self.quadratic.add(gated, {n: anchors[n].to(gated[n].device) for n in gated})
            self._summed += 1

    def join(self) -> None:
        """Leave it: all is one quadratic."""

    def _start_again(self) -> None:
        """Empty the quadratic where the next one is none that goes on."""
        if self.settings.gates or self.decay is not None:
            self.quadratic, self._summed = QuadraticPenalty(), 0

    def grow(self, params: Weights) -> None:
        """Bring weights to the shapes of a network that may have grown, the sum to its device."""
        quadratic = self.quadratic
        for kept in (*self.saved_params.values(), quadratic.importance, quadratic.anchors):
            for name, value in kept.items():
                if name in params:
                    kept[name] = grown(value, params[name])
        for kept in (quadratic.importance, quadratic.anchors):
            kept.update({n: v.to(params[n].device) for n, v in kept.items() if n in params})

    def _held(self, task: int, params: Mapping[str, Tensor]) -> Weights:
        """Return the importance of a task in today's shapes, where the weights are."""
        return {
            name: grown(value, params[name]).to(params[name].device)
            for name, value in self.importances[task].items()
            if name in params
        }

    @property
    def gated(self) -> dict[int, Weights]:
        """Return per old task its importance as it is held; empty between tasks."""
        if not self.holds:
            return {}
        found = {}
        for task in self._old()[: self._summed]:
            held = self._held(task, self.quadratic.importance)
            if task in self._gates:
                held = _kept(self._gates[task], held)
            found[task] = normalize_importance(held) if self.settings.normalize else held
        return found

    def add(
        self,
        number: int,
        fisher: Weights,
        basis: KroneckerBasis | None,
        params: Weights,
        heads: Heads,
    ) -> None:
        """Take in the task that ends; where there is one for all, the old one fades."""
        anchors = {name: value.cpu() for name, value in anchors_of(params).items()}
        fisher = {name: value.cpu() for name, value in fisher.items()}
        last = self._last()
        if self.decay is not None and last is not None:
            anchors = self.saved_params[last] | anchors
            fisher = self._faded(fisher, self.importances[last], self.decay)
        self.importances[number], self.saved_params[number] = fisher, anchors
        self._heads[number] = heads
        self._gates = {}
        self._start_again()
        self._forget(number)

    @staticmethod
    def _faded(fisher: Weights, old: Weights, decay: float) -> Weights:
        merged = {
            name: value + decay * grown(old[name], value) if name in old else value
            for name, value in fisher.items()
        }
        # Frozen for now, or not in the model any more: what was there fades, but stays.
        return {n: decay * v for n, v in old.items() if n not in fisher} | merged

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return super().state_dict() | {"gates": self._gates, "summed": self._summed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of a state."""
        super().load_state_dict(state)
        self._gates, self._summed = deepcopy(dict(state["gates"])), int(state["summed"])


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
