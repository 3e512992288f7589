"""Whether a penalty that is set is in force: what a training loop calls, and what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.parameters import named_parameters, trainable
from avalanche_cetl.common.warning import warn_caller

#: Calls of a loop without effect, after which it is told.
PATIENCE = 100


class InForce:
    """What a task's training made of a penalty.

    :ivar frozen: names of parameters that did not train when tasks ended, and were not measured.
    :ivar thawed: those of them that train now.
    """

    def __init__(self, frozen: Iterable[str] = ()):
        self.frozen = set(frozen)
        self.thawed: set[str] = set()
        self._chosen, self._calls, self._acted, self._told = "", 0, False, False

    @property
    def asked(self) -> bool:
        """Whether the loop has called in the task that runs."""
        return self._calls > 0

    def called(self, chosen: str, effect: bool, patient: bool) -> None:
        """Note a call of a loop, and warn where many have no effect.

        :param chosen: the penalty's form, ``"loss"`` or ``"proximal"``.
        :param effect: whether it held any parameter.
        :param patient: whether nothing is told before the task ends.
        """
        self._chosen = chosen
        self._calls += 1
        self._acted |= effect
        if self._calls == PATIENCE and not patient:
            self._tell()

    def stepped(self, params: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Note a proximal step: it has an effect where the optimiser has any of the parameters."""
        if not self._acted:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._acted = any(id(p) in own for p in params.values())

    def ended(self) -> None:
        """Warn where a task has ended in which nothing was held; begin the next."""
        if self._calls:
            self._tell()
        self._calls, self._acted = 0, False

    def _tell(self) -> None:
        if self._acted or self._told:
            return
        self._told = True
        due = "add loss(model, optimizer) to the loss"
        if self._chosen == "proximal":
            due = "call step(model, optimizer) after each step of the optimizer that holds the "
            due += "network's own parameters (not copies of them)"
        warn_caller(
            "the penalty has held nothing: with this optimizer its form is "
            f"{self._chosen!r}, so {due}, or give penalty= the form that the loop calls."
        )

    def measured(self, model: nn.Module, names: Set[str]) -> None:
        """Note at the end of a task which parameters of a network were measured."""
        self.frozen = (self.frozen | named_parameters(model).keys()) - names
        self.thawed = set()

    def begin(self, model: nn.Module) -> None:
        """Warn where parameters train that did not when the old tasks were measured."""
        self.thawed = self.frozen & trainable(model).keys()
        if self.thawed:
            names = ", ".join(sorted(self.thawed)[:3])
            more = "" if len(self.thawed) <= 3 else f" and {len(self.thawed) - 3} more parameters"
            warn_caller(
                f"{names}{more} were frozen when the old tasks were measured and train now: "
                "nothing holds them. Measure the old task once more, with them unfrozen, by "
                "remember(model, images) before training goes on, or keep them frozen."
            )
