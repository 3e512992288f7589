"""The arguments of a WeightPenalty and what it holds, by name: of today and of version 0.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, SupportsFloat

from avalanche_cetl.allocation.store import ImportanceStore
from avalanche_cetl.allocation.task_measurer import TaskMeasurer
from avalanche_cetl.common.described import Described

#: Arguments that have to be equal where a state is taken over: others may change between tasks.
UNITS = ("basis", "mode", "fisher", "normalize", "likelihood")


class PenaltyArguments(Described):
    """What can be read of a :class:`~avalanche_cetl.allocation.WeightPenalty` by name.

    Other things were made by its arguments: they cannot be assigned, but for the strength.
    """

    settings: Any
    store: ImportanceStore
    measurer: TaskMeasurer

    decay_factor = property(attrgetter("store.decay"))
    mode = property(lambda self: "separate" if self.decay_factor is None else "online")
    keep_importance_data = property(attrgetter("store.keep"))
    penalty = property(attrgetter("_penalty"))
    basis = property(attrgetter("settings.basis"))
    rank = property(attrgetter("settings.rank"))
    threshold = property(attrgetter("settings.threshold"))
    probability = property(attrgetter("settings.probability"))
    estimator = property(attrgetter("settings.estimator"))
    fisher = property(attrgetter("settings.fisher"))
    likelihood = property(attrgetter("measurer.likelihood.likelihood"))
    output = property(attrgetter("measurer.likelihood.output"))
    unseen = property(attrgetter("measurer.seen.unseen"))
    samples = property(attrgetter("settings.samples"))
    damping = property(lambda self: getattr(self.store, "damping", 0.0))
    normalize = property(attrgetter("settings.normalize"))
    seed = property(attrgetter("settings.seed"))
    importances = property(attrgetter("store.importances"))
    saved_params = property(attrgetter("store.saved_params"))
    bases = property(attrgetter("store.bases"))
    gated = property(attrgetter("store.gated"))
    shared = property(attrgetter("store.shared"))

    @property
    def dwa_lambda(self) -> float:
        """Return the strength of the penalty; one that is assigned counts from the next step."""
        return self._dwa_lambda

    @dwa_lambda.setter
    def dwa_lambda(self, value: float) -> None:
        if isinstance(value, str) or not isinstance(value, SupportsFloat):
            raise TypeError(f"dwa_lambda={value!r} has to be one number.")
        if not value >= 0 or (math.isinf(value) and self.penalty != "proximal"):
            raise ValueError(
                f"dwa_lambda={value} has to be >= 0, and finite with penalty={self.penalty!r}."
            )
        self._dwa_lambda = float(value)

    def _units(self) -> dict[str, Any]:
        """Return the arguments that importances which are kept have their meaning by."""
        return {name: getattr(self, name) for name in UNITS}

    def _check_units(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError for a state whose importances mean another thing.

        :param state: its ``"units"``, of which states of version 0.2 have the basis alone.
        """
        its = state.get("units", {"basis": state.get("basis")})
        for name, mine in self._units().items():
            if name in its and its[name] != mine:
                raise ValueError(
                    f"the state is of {name}={its[name]!r}, and this object has {name}={mine!r}: "
                    "make it with the arguments of the other."
                )

    def _next_number(self) -> int:
        """Return the number of a task that has none of its own."""
        return 1 + max(self.store.numbers, default=-1)


def state_of_0_2(plugin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a WeightPenalty, of what version 0.2 kept of GFIPlugin's attributes."""
    store = {name.removeprefix("_"): value for name, value in plugin["memory"].items()}
    store["quadratic"] = store["pull"]
    if "summed" in store:  # the number of the last task that was
        store["summed"] = sum(task <= store["summed"] for task in store["importances"])
    basis = "kronecker" if "sum" in store else "diagonal"
    return {"basis": basis, "store": store, "generator": plugin["_generator"]}
