"""Settings by name: what measured best, which is the default, and the algorithm as printed.

``"paper"``: the algorithm as printed, with GFI unscaled and a lambda of 1e-2 (the paper gives
none).

``"best"``, the default: what measured best on the development tasks of ``benchmarks/suite``: T2
learns directly (variant ``"direct"``), in one step from the labels and from plugins on the target
rows. It looks at the experience (:class:`~avalanche_cetl.training.choice.Choice`, which logs a
line):

- target rows with labels, of every class: ``SoftTargets`` of a probe on S, or of S's own
  classifier where that is right as often, with a weight of 3 up to 10 labels per class, and the
  less the more labels there are (:class:`ProbeWeight`);
- no target label, but labelled rows of another domain: ``InformationMaximization``; and
  ``SoftTargets`` of S's class centroids (SHOT's self-labelling), with a weight of 0.3 that falls to
  0, where S names most of those rows right, so that its classes are T2's;
- no label at all: the same two; S's classes have to be T2's.

Information maximisation wants classes that are about equally frequent; for others give
``InformationMaximization(1.0, prior=...)``: a plugin that was given takes the place of one that
records the same losses.

``"best"`` with a variant of your choice keeps the decoder: a fixed goal, a warm-up of 10 epochs,
lambda 0.03, ``DecoderHints``, where target rows have labels ``SoftTargets`` of a probe on S, and
for unlabelled rows ``ViewConsistency``. It does best with
:func:`~avalanche_cetl.scenarios.mixed.with_mixed_images`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

from avalanche.core import BasePlugin

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.plugins.adaptation import InformationMaximization
from avalanche_cetl.plugins.base import names_of
from avalanche_cetl.plugins.hints import DecoderHints
from avalanche_cetl.plugins.soft_targets import SoftTargets
from avalanche_cetl.plugins.views import ViewConsistency
from avalanche_cetl.training.checks import check_loss_names
from avalanche_cetl.training.choice import Choice, DataProfile, Rule
from avalanche_cetl.training.variants import Variant, VariantName

logger = logging.getLogger(__name__)

#: Names of the presets.
PresetName = Literal["paper", "best"]


@dataclass(frozen=True)
class Preset:
    """Values of those arguments of ``CETLStrategy`` that were not given.

    :ivar variant: see ``CETLStrategy``, as all below.
    :ivar warmup_epochs: None: 10 for the variants that need one, else 0.
    :ivar fixed_goal: where the variant and ``alternate`` allow it.
    :ivar stage_epochs: with ``alternate="epoch"``.
    :ivar plugins: made anew for each strategy, unless it was given one of the same losses.
    """

    variant: VariantName = "gfi"
    dwa_lambda: float = 1e-3
    gfi: GFISettings = field(default_factory=GFISettings)
    warmup_epochs: int | None = None
    input_noise: float = 0.0
    fixed_goal: bool = True
    stage_epochs: tuple[int, int, int] | Literal["balanced"] = "balanced"
    lr_factors: tuple[float, float] = (1.0, 0.1)
    plugins: tuple[Rule, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return its values by name, its plugins by class and settings: for records of runs.

        ``variant``, ``stage_epochs`` and a plugin's ``anneal`` are left out where they are as they
        were before they were there: result files of earlier versions name the same settings
        without them.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, earlier in (("variant", "gfi"), ("stage_epochs", (1, 1, 1))):
            if own[name] == earlier:
                del own[name]
        own["gfi"] = self.gfi.describe()
        own["plugins"] = []
        for rule in self.plugins:
            plugin = rule.make()
            settings = {
                name: value
                for name, value in vars(plugin).items()
                if isinstance(value, int | float | str)
                and name[0] != "_"
                and (name, value) != ("anneal", False)
            }
            weight = {} if rule.weight is None else {"weight": repr(rule.weight)}
            own["plugins"].append({"class": type(plugin).__name__} | settings | weight)
        return own

    def plugins_beside(
        self, plugins: Sequence[BasePlugin], model: Any, variant: Variant | None = None
    ) -> list[BasePlugin]:
        """Return the preset's own plugins, before those that were given.

        A plugin that was given takes the place of the preset's that records the same losses; the
        log says so, as a warning where it is of another class. One that reads T1's hidden layers is
        left out where no stage of the variant draws images from T2's code.
        """
        check_loss_names(plugins)
        own: list[tuple[Any, Rule]] = []
        for rule in self.plugins:
            one = rule.make()
            instead = [plugin for plugin in plugins if set(names_of([plugin])) & set(one.names)]
            for plugin in instead:
                logger.log(
                    logging.INFO if isinstance(plugin, type(one)) else logging.WARNING,
                    "%s takes the place of the preset's %s, since both record %s. Give it another "
                    "name to have both.",
                    type(plugin).__name__,
                    type(one).__name__,
                    ", ".join(sorted(set(names_of([plugin])) & set(one.names))),
                )
            idle = one.reads_decoder_hidden and variant and not variant.reconstructs
            if one.fits(model) and not idle and not instead:
                own.append((one, rule))
        choice = [Choice(own)] if own else []
        return [*choice, *(one for one, _ in own), *plugins]


def _labelled(given: DataProfile) -> bool:
    """Return whether a probe can be fitted: every class has a target row with a label."""
    return given.has_source and given.known > 1 and given.known == given.classes


def _no_target_label(given: DataProfile) -> bool:
    return given.labelled == 0


def _source_teaches(given: DataProfile) -> bool:
    if given.labelled or given.others:
        return given.labelled == 0 and given.same_classes
    if not given.source_classifies:
        raise ValueError(
            'no row has a label, so preset="best" has T2 learn from S\'s own classifier, and S has '
            "none of as many classes as T2: give some labels, labelled rows of another domain, or "
            "SoftTargets(rows=\"target\", head=...) with a classifier of S's features for T2's "
            f"classes. {given.no_logits}"
        )
    return True


@dataclass(frozen=True)
class ProbeWeight:
    """The weight of a probe's soft targets, a mean over all target rows.

    A label speaks for its row with weight 1. Beside it the probe has ``full`` up to ``labels``
    labels per class, and then less in proportion. The mean over all rows gives rows without a label
    as much. It is never more than ``full``.
    """

    full: float = 3.0
    labels: int = 10

    def __call__(self, given: DataProfile) -> float:
        """Return the weight, of data with labelled target rows."""
        per_class = given.labelled / given.known
        rows = (given.labelled + given.unlabelled) / given.labelled
        return self.full * min(1.0, rows * self.labels / per_class)


#: Partial functions in all rules: strategies that are pickled name them.
_soft = partial(SoftTargets, temperature=2.0, rows="target")


#: As the paper prints it: raw GFI, the goal T1(S(x)) from T1 as it changes, one pass for each
#: stage, no warm-up but for the variants that train T1 there, nothing added. It gives no lambda:
#: 1e-2 is ours.
PAPER = Preset(
    dwa_lambda=1e-2,
    gfi=GFISettings(normalize=False),
    fixed_goal=False,
    stage_epochs=(1, 1, 1),
    lr_factors=(1.0, 1.0),
)

#: What measured best (``benchmarks/suite``).
BEST = Preset(
    variant="direct",
    plugins=(
        Rule(partial(_soft, weight=3.0, head="best"), _labelled, ProbeWeight()),
        Rule(partial(_soft, weight=0.3, head="centroids", anneal=True), _source_teaches),
        Rule(partial(InformationMaximization, 1.0, rampup_rounds=4), _no_target_label),
    ),
)

#: What measured best with a decoder, with target labels and without (``benchmarks/README.md``,
#: Tables 2, 4, 5).
BEST_COUPLED = Preset(
    dwa_lambda=0.03,
    warmup_epochs=10,
    stage_epochs=(1, 1, 1),
    lr_factors=(1.0, 1.0),
    plugins=(
        Rule(partial(DecoderHints, 1.0)),
        Rule(partial(_soft, weight=10.0, head="probe")),
        Rule(partial(ViewConsistency, 10.0, threshold=0.968, rampup_rounds=6, rows="unlabelled")),
    ),
)

_PRESETS = {"best": BEST, "paper": PAPER}


def parse_preset(preset: str | None, variant: str | Variant | None = None) -> Preset:
    """Return the preset of that name.

    :param preset: ``"best"`` or ``"paper"``; None: ``"best"``.
    :param variant: that was given with it; ``"best"`` keeps the decoder of one that has one.
        There is no warm-up for one of the user's in which no stage uses T1.
    :raises ValueError: for another name.
    """
    name = preset or "best"
    check_choice("preset", name, _PRESETS)
    if name == "best" and variant not in (None, BEST.variant):
        if isinstance(variant, Variant) and not variant.uses_decoder:
            return replace(BEST_COUPLED, warmup_epochs=0)
        return BEST_COUPLED
    return _PRESETS[name]
