"""One optimiser state per stage, steered by the user's one optimiser."""

from __future__ import annotations

import inspect
from typing import Any

from avalanche.models.dynamic_optimizers import update_optimizer
from torch import Tensor
from torch.optim import Optimizer

from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.stages.base import TrainingStage
from avalanche_cetl.training.variants import WARMUP, Variant


class StageOptimizer:
    """An optimiser of the same class and settings as the user's, with moments of its own.

    Learning rate and all other settings are read from the user's optimiser at every step,
    group by group, so a scheduler on it moves this one too.

    :param stage: whose parameters it steps.
    """

    def __init__(self, stage: TrainingStage):
        self.stage = stage
        self.optimizer: Optimizer | None = None

    def prepare(self, template: Optimizer, model: CoupledModel) -> None:
        """Cover what the stage trains of a network; what is covered already keeps its moments.

        :param template: the user's optimiser, as it is now.
        :param model: the network.
        :raises ValueError: when the user's optimiser does not cover it.
        """
        wanted = {id(p) for p in self.stage.parameters(model) if p.requires_grad}
        groups = []
        for group in template.param_groups:
            chosen = [p for p in group["params"] if id(p) in wanted]
            groups.append({**_settings(group), "params": chosen})
        covered = {id(p) for group in groups for p in group["params"]}
        if covered != wanted:
            raise ValueError("the optimizer does not cover all parameters of this stage.")
        kind = type(template)
        # Moments of another class of optimiser mean something else.
        state: dict[Tensor, Any] = self.optimizer.state if type(self.optimizer) is kind else {}
        accepted = inspect.signature(kind.__init__).parameters
        defaults = {k: v for k, v in template.defaults.items() if k in accepted}
        self.optimizer = kind(groups, **defaults)
        for param, moments in state.items():
            if id(param) in wanted:
                self.optimizer.state[param] = moments

    def step(self, template: Optimizer, factor: float = 1.0) -> None:
        """Step with the template's current settings.

        :param template: the user's optimiser.
        :param factor: on its learning rates.
        """
        assert self.optimizer is not None, "prepare() comes first"
        for own, group in zip(self.optimizer.param_groups, template.param_groups, strict=True):
            own.update(_settings(group))
            if factor != 1.0:
                own["lr"] = own["lr"] * factor
        self.optimizer.step()


class StageOptimizers(dict[str, StageOptimizer]):
    """The optimisers of the warm-up and of the stages that have one of their own, by label."""

    def follow(self, variant: Variant) -> None:
        """Have those of a variant's stages; stages that it shares with the last keep theirs."""
        stages = [stage for stage in (WARMUP, *variant.stages) if stage.own_optimizer]
        kept = dict(self)
        self.clear()
        for stage in stages:
            own = kept.get(stage.label)
            # Not by identity: a copy of a strategy has copies of the stages.
            same = own is not None and _like(own.stage) == _like(stage)
            self[stage.label] = own if own is not None and same else StageOptimizer(stage)


def _like(stage: TrainingStage) -> tuple[type, dict[str, Any]]:
    return type(stage), vars(stage)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


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
        own.prepare(host.optimizer, host.model)
