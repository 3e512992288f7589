"""One optimiser state per stage, steered by the user's one optimiser."""

from __future__ import annotations

import inspect
from typing import Any

from avalanche.models.dynamic_optimizers import update_optimizer
from torch import Tensor
from torch.optim import Optimizer

from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.recipe import Recipe
from avalanche_cetl.training.stages.base import TrainingStage
from avalanche_cetl.training.variants import WARMUP


class StageOptimizer:
    """An optimiser of the same class and settings as the user's, with moments of its own.

    Learning rate and all other settings are read from the user's optimiser at every step,
    group by group, so a scheduler on it moves this one too.

    :param template: the user's optimiser.
    :param stage: whose parameters it steps.
    :param factor: on its learning rates.
    """

    def __init__(self, template: Optimizer, stage: TrainingStage, factor: float = 1.0):
        self.template, self.stage, self.factor = template, stage, factor
        self.optimizer: Optimizer | None = None

    def prepare(self, model: CoupledModel) -> None:
        """Cover what the stage trains of a network; what is covered already keeps its moments.

        :raises ValueError: when the user's optimiser does not cover it.
        """
        wanted = {id(p) for p in self.stage.parameters(model) if p.requires_grad}
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


def stage_optimizers(template: Optimizer, recipe: Recipe) -> dict[str, StageOptimizer]:
    """Return the optimisers of the warm-up and of the stages that have one of their own."""
    return {
        stage.label: StageOptimizer(template, stage, recipe.lr_factor(stage.kind))
        for stage in (WARMUP, *recipe.variant.stages)
        if stage.own_optimizer
    }


def cover(host: Any, reset_state: bool, **kwargs: Any) -> None:
    """Let the user's optimiser cover what can learn now, S never, and the stages' own follow.

    :param host: the strategy.
    :param reset_state: whether moments begin anew.
    :param kwargs: of Avalanche's ``make_optimizer``.
    """
    host.optimized_param_id = update_optimizer(
        host.optimizer,
        {name: p for name, p in host.model.named_parameters() if p.requires_grad},
        host.optimized_param_id,
        reset_state=reset_state,
        remove_params=kwargs.get("remove_params", False),
        verbose=kwargs.get("verbose_optimizer", False),
    )
    for own in host.optimizers.values():
        own.prepare(host.model)
