"""States that earlier versions wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def state_of_0_2(plugin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a WeightPenalty, of what version 0.2 kept of GFIPlugin's attributes."""
    store = {name.removeprefix("_"): value for name, value in plugin["memory"].items()}
    store["quadratic"] = store["pull"]
    if "summed" in store:  # the number of the last task that was
        store["summed"] = sum(task <= store["summed"] for task in store["importances"])
    basis = "kronecker" if "sum" in store else "diagonal"
    return {"basis": basis, "store": store, "generator": plugin["_generator"]}
