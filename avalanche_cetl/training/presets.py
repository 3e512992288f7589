"""Settings by name: the algorithm as the paper prints it, and what measured best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from avalanche.core import BasePlugin

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.hints import DecoderHints
from avalanche_cetl.plugins.soft_targets import SoftTargets
from avalanche_cetl.plugins.views import ViewConsistency
from avalanche_cetl.training.variants import Variant


@dataclass(frozen=True)
class Preset:
    """Values of those arguments of ``CETLStrategy`` that were not given.

    :ivar dwa_lambda: see ``CETLStrategy``, as all below.
    :ivar warmup_epochs: None: 10 for the variants that need one, else 0.
    :ivar fixed_goal: where the variant and ``alternate`` allow it.
    :ivar plugins: made anew for each strategy, unless it was given one of the same class.
    """

    dwa_lambda: float = 1e-3
    gfi: GFISettings = field(default_factory=GFISettings)
    warmup_epochs: int | None = None
    input_noise: float = 0.0
    fixed_goal: bool = False
    lr_factors: tuple[float, float] = (1.0, 1.0)
    plugins: tuple[Callable[[], BasePlugin], ...] = ()

    def fill(self, variant: Variant, alternate: str, given: dict[str, Any]) -> dict[str, Any]:
        """Give the arguments by name; what was given, that is not None, stays."""
        warmup_epochs = self.warmup_epochs
        if warmup_epochs is None:
            warmup_epochs = 10 if variant.needs_warmup else 0
        fixable = alternate == "epoch" and variant.plan.merged is None
        own = {
            "dwa_lambda": self.dwa_lambda,
            "gfi": self.gfi,
            "warmup_epochs": warmup_epochs,
            "input_noise": self.input_noise,
            "fixed_goal": self.fixed_goal and fixable,
            "lr_factors": self.lr_factors,
        }
        return {name: own[name] if given[name] is None else given[name] for name in own}

    def describe(self) -> dict[str, Any]:
        """Give its values by name, its plugins by class and settings: for records of runs."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own["gfi"] = asdict(self.gfi)
        made = [make() for make in self.plugins]
        own["plugins"] = [
            {"class": type(plugin).__name__}
            | {k: v for k, v in vars(plugin).items() if isinstance(v, int | float | str)}
            for plugin in made
        ]
        return own

    def plugins_beside(self, plugins: list[BasePlugin], model: Any) -> list[BasePlugin]:
        """Give the preset's own plugins, before those that were given."""
        own = []
        for make in self.plugins:
            plugin = make()
            if any(isinstance(one, type(plugin)) for one in plugins):
                continue
            if isinstance(plugin, DecoderHints) and not _has_hidden_layers(model):
                continue
            own.append(plugin)
        return own + plugins


def _has_hidden_layers(model: Any) -> bool:
    return isinstance(model, CoupledModel) and hasattr(model.decoder, "forward_hidden")


#: As the paper prints it: raw GFI, the goal T1(S(x)) from T1 as it changes, no warm-up but for the
#: variants that train T1 there, nothing added. It gives no lambda: 1e-2 is ours.
PAPER = Preset(dwa_lambda=1e-2, gfi=GFISettings(normalize=False))

#: What measured best, with target labels and without (``benchmarks/README.md``, Tables 2, 4, 5).
BEST = Preset(
    dwa_lambda=0.03,
    warmup_epochs=10,
    fixed_goal=True,
    plugins=(
        lambda: DecoderHints(1.0),
        lambda: SoftTargets(2.0, 10.0, rows="target", head="probe"),
        lambda: ViewConsistency(10.0, threshold=0.968, rampup_rounds=6, rows="unlabelled"),
    ),
)

_PRESETS = {None: Preset(), "paper": PAPER, "best": BEST}


def parse_preset(preset: str | None) -> Preset:
    """Give the preset of that name; None: the defaults.

    :raises ValueError: for another name.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset={preset!r} is not known. Allowed: None, 'paper', 'best'.")
    return _PRESETS[preset]
