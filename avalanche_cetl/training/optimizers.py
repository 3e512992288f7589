"""One optimiser state per stage, steered by the user's one optimiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.common.optimizers import optimizer_like
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.networks import StageModules
from avalanche_cetl.training.stages import TrainingStage
from avalanche_cetl.training.variants import WARMUP, Variant


class StageOptimizer:
    """An optimiser of the same class and settings as the user's, with moments of its own.

    Learning rate and all other settings are read from the user's optimiser at every step,
    group by group, so a scheduler on it moves this one too. The stage's own module is a group after
    those, with the settings of the first.

    :param stage: whose parameters it steps.
    :param module: that the stage brings; None: none.
    """

    def __init__(self, stage: TrainingStage, module: nn.Module | None = None):
        self.stage, self.module = stage, module
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
            groups.append(group | {"params": chosen})
        covered = {id(p) for group in groups for p in group["params"]}
        if covered != wanted:
            raise ValueError("the optimizer does not cover all parameters of this stage.")
        if self.module is not None:
            self.module.to(next(model.target.parameters()).device)
            own = [p for p in self.module.parameters() if p.requires_grad]
            groups.append(template.param_groups[0] | {"params": own})
            wanted |= {id(p) for p in own}
        # Moments of another class of optimiser mean something else.
        state: dict[Tensor, Any] = (
            self.optimizer.state if type(self.optimizer) is type(template) else {}
        )
        self.optimizer = optimizer_like(template, groups)
        for param, moments in state.items():
            if id(param) in wanted:
                self.optimizer.state[param] = moments

    def step(self, template: Optimizer, factor: float = 1.0) -> None:
        """Step with the template's current settings.

        :param template: the user's optimiser.
        :param factor: on its learning rates.
        """
        assert self.optimizer is not None, "prepare() comes first"
        groups = [*template.param_groups, template.param_groups[0]]
        for own, group in zip(self.optimizer.param_groups, groups, strict=False):
            own.update(group | {"params": own["params"]})
            if factor != 1.0:
                own["lr"] = own["lr"] * factor
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients of the stage's own module; the user's optimiser drops the others."""
        if self.module is not None:
            self.module.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the module's weights and moments by name, for checkpoints."""
        assert self.module is not None
        state = {} if self.optimizer is None else self.optimizer.state
        return {
            "weights": dict(self.module.state_dict()),
            "moments": {n: dict(state[p]) for n, p in self.module.named_parameters() if p in state},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the module's weights and moments."""
        assert self.module is not None and self.optimizer is not None
        self.module.load_state_dict(state["weights"])
        for name, parameter in self.module.named_parameters():
            self.optimizer.state.pop(parameter, None)
            if name in state["moments"]:
                self.optimizer.state[parameter] = dict(state["moments"][name])


class StageOptimizers(dict[str, StageOptimizer]):
    """The optimisers of the warm-up and of the stages that have one of their own, by label."""

    def follow(self, variant: Variant, model: CoupledModel) -> None:
        """Have those of a variant's stages; stages that it shares with the last keep theirs."""
        stages = [stage for stage in (WARMUP, *variant.stages) if stage.own_optimizer]
        earlier = dict(self)
        self.clear()
        for stage in stages:
            own = earlier.get(stage.label)
            # Not by identity: a copy of a strategy has copies of the stages.
            if own is None or _like(own.stage) != _like(stage):
                own = StageOptimizer(stage, stage.make_module(model))
            self[stage.label] = own

    @property
    def modules(self) -> StageModules:
        """Return the modules that stages bring themselves, by the label of the stage."""
        own = {label: one.module for label, one in self.items() if one.module is not None}
        return StageModules(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of those modules, for checkpoints."""
        return {label: self[label].state_dict() for label in self.modules}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the states of those modules."""
        for label in self.modules:
            self[label].load_state_dict(state[label])


def _like(stage: TrainingStage) -> tuple[type, dict[str, Any]]:
    return type(stage), vars(stage)
