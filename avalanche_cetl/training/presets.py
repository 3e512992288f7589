"""Settings by name: the algorithm as the paper prints it, and what measured best.

``"paper"``: the algorithm as printed, with GFI unscaled and a lambda of 1e-2 (the paper gives
none).

``"best"``: what measured best: a fixed goal, a warm-up of 10 epochs, lambda 0.03, ``DecoderHints``
(with a decoder that has ``forward_hidden``), where target rows have labels ``SoftTargets`` of a
probe on S, and for unlabelled rows ``ViewConsistency``, which wants classes that are about equally
frequent. A plugin that was given takes the place of one that records the same losses. It does best
with :func:`~avalanche_cetl.scenarios.mixed.with_mixed_images`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from avalanche.core import BasePlugin

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.plugins.contract import CETLPlugin, names_of
from avalanche_cetl.plugins.hints import DecoderHints
from avalanche_cetl.plugins.soft_targets import SoftTargets
from avalanche_cetl.plugins.views import ViewConsistency


@dataclass(frozen=True)
class Preset:
    """Values of those arguments of ``CETLStrategy`` that were not given.

    :ivar dwa_lambda: see ``CETLStrategy``, as all below.
    :ivar warmup_epochs: None: 10 for the variants that need one, else 0.
    :ivar fixed_goal: where the variant and ``alternate`` allow it.
    :ivar plugins: made anew for each strategy, unless it was given one of the same losses.
    """

    dwa_lambda: float = 1e-3
    gfi: GFISettings = field(default_factory=GFISettings)
    warmup_epochs: int | None = None
    input_noise: float = 0.0
    fixed_goal: bool = False
    lr_factors: tuple[float, float] = (1.0, 1.0)
    plugins: tuple[Callable[[], CETLPlugin], ...] = ()

    def fill(self, given: dict[str, Any], *, needs_warmup: bool, fixable: bool) -> dict[str, Any]:
        """Return the arguments by name; what was given, that is not None, stays.

        :param needs_warmup: whether the variant trains T1 on L_rs in the warm-up alone.
        :param fixable: whether the goal of stage 2 can be fixed.
        """
        warmup_epochs = self.warmup_epochs
        if warmup_epochs is None:
            warmup_epochs = 10 if needs_warmup else 0
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
        """Return its values by name, its plugins by class and settings: for records of runs."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        own["gfi"] = self.gfi.describe()
        made = [make() for make in self.plugins]
        own["plugins"] = [
            {"class": type(plugin).__name__}
            | {k: v for k, v in vars(plugin).items() if isinstance(v, int | float | str)}
            for plugin in made
        ]
        return own

    def plugins_beside(self, plugins: Sequence[BasePlugin], model: Any) -> list[BasePlugin]:
        """Return the preset's own plugins, before those that were given.

        A plugin that was given takes the place of the preset's that records the same losses.
        """
        given = names_of(plugins)
        made = [make() for make in self.plugins]
        own = [one for one in made if one.fits(model) and not set(one.names) & set(given)]
        return [*own, *plugins]


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
    """Return the preset of that name; None: the defaults.

    :raises ValueError: for another name.
    """
    if preset not in _PRESETS:
        raise ValueError(f"preset={preset!r} is not known. Allowed: None, 'paper', 'best'.")
    return _PRESETS[preset]
