"""One optimiser state per stage, steered by the user's one optimiser."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class StageOptimizer:
    """An optimiser of the same class and settings as the user's, with moments of its own.

    Learning rate and all other settings are read from the user's optimiser at every step,
    group by group, so a scheduler on it moves this one too.

    :param template: the user's optimiser.
    :param factor: on its learning rates.
    """

    def __init__(self, template: Optimizer, factor: float = 1.0):
        self.template, self.factor = template, factor
        self.optimizer: Optimizer | None = None

    def prepare(self, params: Iterable[nn.Parameter]) -> None:
        """Cover exactly these parameters; those already covered keep their moments."""
        wanted = {id(p) for p in params}
        groups = []
        for group in self.template.param_groups:
            chosen = [p for p in group["params"] if id(p) in wanted]
            groups.append({**_settings(group), "params": chosen})
        covered = {id(p) for group in groups for p in group["params"]}
        if covered != wanted:
            raise ValueError("the optimizer does not cover all parameters of this stage.")
        state: dict[Tensor, Any] = self.optimizer.state if self.optimizer is not None else {}
        kind = type(self.template)
        accepted = inspect.signature(kind.__init__).parameters
        defaults = {k: v for k, v in self.template.defaults.items() if k in accepted}
        self.optimizer = kind(groups, **defaults)
        for param, moments in state.items():
            if id(param) in wanted:
                self.optimizer.state[param] = moments

    def step(self) -> None:
        """Step with the template's current settings."""
        assert self.optimizer is not None, "prepare() comes first"
        for own, group in zip(self.optimizer.param_groups, self.template.param_groups, strict=True):
            own.update(_settings(group))
            if self.factor != 1.0:
                own["lr"] = own["lr"] * self.factor
        self.optimizer.step()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}
