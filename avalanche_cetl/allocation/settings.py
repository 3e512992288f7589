"""The settings of importances and penalties, their defaults, and what is allowed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.information import Quantile
from avalanche_cetl.information.estimators import check_estimator
from avalanche_cetl.information.generalized import check_threshold, check_unit_interval
from avalanche_cetl.information.likelihood import LOSS_NAMES, LossName

#: Names of the coordinates that importances are measured in.
Basis = Literal["diagonal", "kronecker"]
#: How the importances of several tasks are kept: one for each, or one for all, old ones fading.
Mode = Literal["separate", "online"]
#: The form of the penalty; ``"auto"``: by the optimiser.
Penalty = Literal["auto", "proximal", "loss"]
#: The strength where no basis is named, in the unit that the outputs give it: chosen on permuted,
#: odd/even and split MNIST, read once on four other streams (benchmarks/continual/natural.py).
STRENGTH = 5.0
_KRONECKER = {"basis": "kronecker", "threshold": 0.0, "probability": 1.0}
_DIAGONAL = {"basis": "diagonal", "threshold": 0.5, "probability": 0.9}
#: Images of a measurement where no number is given: so many, or a share of the task's where that
#: is more, up to a limit. After 20 permutations of all of MNIST 90.3 % were left with 2,000 images
#: and 86.1 % with 256; with tasks of 2,000 images more than 256 made no difference
#: (benchmarks/continual/permutations.py).
LEAST_SAMPLES, SHARE_OF_SAMPLES, MOST_SAMPLES = 256, 32, 2000
_OUTPUTS = {
    "fisher": "logits", "normalize": False, "penalty": "auto", "dwa_lambda": STRENGTH,
    "samples": None,
}  # fmt: skip
_FISHER = {"fisher": "sampled", "normalize": True, "penalty": "proximal", "samples": LEAST_SAMPLES}
#: By the basis that is named, what WeightPenalty takes where nothing is said. None: none is named.
DEFAULTS: dict[Basis | None, dict[str, Any]] = {
    None: _KRONECKER | _OUTPUTS,
    "diagonal": _DIAGONAL | _FISHER,
    "kronecker": _KRONECKER | _FISHER,
}


def with_defaults(basis: Basis | None, **given: Any) -> dict[str, Any]:
    """Return arguments of WeightPenalty, those that are None as :data:`DEFAULTS` has them.

    :raises ValueError: for another basis, or where a strength has to be given.
    """
    if basis is not None:
        check_choice("basis", basis, get_args(Basis))
    chosen = DEFAULTS[basis] | {n: value for n, value in given.items() if value is not None}
    if "dwa_lambda" not in chosen:
        raise ValueError(
            f"dwa_lambda has to be given with basis={basis!r}, where its best value differs from "
            "stream to stream: try factors of 10, for instance dwa_lambda=1.0. Without basis= it "
            f"has a unit, and is {STRENGTH}."
        )
    return chosen


def check_mode(mode: Mode, decay_factor: float | None) -> None:
    """Raise ValueError for another mode, or a decay that does not go with it."""
    check_choice("mode", mode, get_args(Mode))
    if (mode == "online") != (decay_factor is not None):
        raise ValueError(
            f"decay_factor={decay_factor} with mode={mode!r}: give decay_factor in 'online' mode, "
            "and only there."
        )
    if decay_factor is not None and not 0 <= decay_factor < math.inf:
        raise ValueError(f"decay_factor={decay_factor} has to be finite and >= 0.")


@dataclass(frozen=True)
class GFISettings:
    """How Generalized Fisher Information is measured and used (eqs. 9 to 11).

    Threshold and probability that are not given are those of the basis; ``dataclasses.replace``
    keeps them when it changes the basis.

    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``: the q-quantile of RF. Default:
        0.5 in the diagonal basis; 0 in the Kronecker basis, where a gate costs more than it gains.
    :param probability: p of eq. 10, in [0, 1]. Default: 0.9 in the diagonal basis, 1 in the
        Kronecker basis. With u = 0 and p = 1 there is no gate.
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"``, ``"histogram"``, or a name
        that :func:`~avalanche_cetl.information.register_estimator` was given.
    :param fisher: ``"sampled"`` (true Fisher, needs no labels), ``"empirical"``, or ``"logits"``
        (importance of the outputs, see :func:`~avalanche_cetl.information.sample_output_vectors`:
        of T2's logits, and of the pixels of a reconstruction).
    :param samples: number of images that a measurement reads, >= 2, or all of fewer. None: 256, or
        one in 32 of the task's images where that is more, at most 2,000.
    :param basis: in which importances are measured: ``"diagonal"``, the network's own weights, or
        ``"kronecker"``, the eigenbasis of each layer's Kronecker factors
        (:func:`~avalanche_cetl.information.kronecker_basis`).
    :param rank: directions kept on either side of a layer, >= 1; for ``"kronecker"`` alone.
    :param normalize: rescale GFI to mean 1 over its non-zero entries before lambda; False is
        the paper's raw form, and for ``"logits"`` keeps the unit that the outputs give it.
    :param refresh_every: rounds between two measurements, >= 1.
    :param seed: of the drawn images, the drawn targets and the gate.
    :raises ValueError: for values outside these ranges.
    """

    threshold: float | Quantile = None  # type: ignore[assignment]
    probability: float = None  # type: ignore[assignment]
    estimator: str = "gaussian"
    fisher: LossName = "sampled"
    samples: int | None = LEAST_SAMPLES
    basis: Basis = "diagonal"
    rank: int = 64
    normalize: bool = True
    refresh_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("basis", self.basis, get_args(Basis))
        for field in ("threshold", "probability"):
            if getattr(self, field) is None:
                object.__setattr__(self, field, DEFAULTS[self.basis][field])
        check_threshold(self.threshold)
        check_unit_interval("probability", self.probability)
        check_estimator(self.estimator)
        check_choice("fisher", self.fisher, LOSS_NAMES)
        for name in ("samples", "rank", "refresh_every", "seed"):
            value = getattr(self, name)
            if name == "samples" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}={getattr(self, name)!r} has to be a whole number.")
        if self.samples is not None and self.samples < 2:
            raise ValueError(f"samples={self.samples}: mutual information needs at least 2.")
        for name in ("rank", "refresh_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} has to be >= 1.")

    def measured_of(self, images: int) -> int:
        """Return how many of so many images a measurement reads.

        :param images: of the task.
        """
        wanted = self.samples
        if wanted is None:
            wanted = max(LEAST_SAMPLES, min(images // SHARE_OF_SAMPLES, MOST_SAMPLES))
        return min(wanted, images)

    @property
    def gates(self) -> bool:
        """Return whether there is a gate: with u = 0 and p = 1 all importance is kept."""
        return not (self.probability == 1 and self.threshold == 0)

    def describe(self) -> dict[str, Any]:
        """Return the settings by name, as plain data.

        ``basis`` and ``rank`` are left out in the diagonal basis: result files and checkpoints of
        earlier versions, which had no other, name the same settings without them. They also name
        ``normalize_samples``, a setting of 0.2 that was False in all of them.
        """
        found = asdict(self) | {"normalize_samples": False}
        if self.basis == "diagonal":
            del found["basis"], found["rank"]
        return found

    def __repr__(self) -> str:
        shown = (
            f"{name}={getattr(self, name)!r}" for name in self.describe() if hasattr(self, name)
        )
        return f"GFISettings({', '.join(shown)})"
