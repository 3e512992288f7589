"""GFISettings: how Generalized Fisher Information is measured and used."""

from __future__ import annotations

from dataclasses import dataclass

from avalanche_cetl.information import Quantile
from avalanche_cetl.information.estimators import check_estimator
from avalanche_cetl.information.generalized import check_threshold, check_unit_interval


@dataclass(frozen=True)
class GFISettings:
    """How Generalized Fisher Information is measured and used (eqs. 9 to 11).

    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``: the q-quantile of RF.
    :param probability: p of eq. 10, in [0, 1].
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"`` or ``"histogram"``.
    :param fisher: ``"sampled"`` (true Fisher, needs no labels) or ``"empirical"``.
    :param samples: number of target images an importance pass reads, >= 2.
    :param normalize: rescale GFI to mean 1 over its non-zero entries before lambda; False is
        the paper's raw form.
    :param normalize_samples: take every sample's gradient norm out of RF.
    :param refresh_every: rounds between two measurements, >= 1.
    :param seed: of the drawn images, the drawn targets and the gate.
    :raises ValueError: for values outside these ranges.
    """

    threshold: float | Quantile = 0.5
    probability: float = 0.9
    estimator: str = "gaussian"
    fisher: str = "sampled"
    samples: int = 256
    normalize: bool = True
    normalize_samples: bool = False
    refresh_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_unit_interval("probability", self.probability)
        check_estimator(self.estimator)
        if self.fisher not in ("sampled", "empirical"):
            raise ValueError(
                f"fisher={self.fisher!r} is not known. Allowed: 'sampled', 'empirical'."
            )
        for name in ("samples", "refresh_every", "seed"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name}={getattr(self, name)!r} has to be a whole number.")
        if self.samples < 2:
            raise ValueError(f"samples={self.samples}: mutual information needs at least 2.")
        if self.refresh_every < 1:
            raise ValueError(f"refresh_every={self.refresh_every} has to be >= 1.")
