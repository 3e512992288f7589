"""Everything that a run of the demo depends on, and what it finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from avalanche_cetl.allocation import GFISettings

#: Labels that every class of the target keeps.
LABELS_PER_CLASS = 10


@dataclass(frozen=True)
class Settings:
    """Everything that a demo run depends on, apart from the seed.

    Chosen on seeds from 100 and the validation part of the target's training rows.
    """

    source_width: float = 0.5
    source_epochs: int = 15
    width: float = 0.25
    learning_rate: float = 2e-3
    decoder_learning_rate: float = 3e-4
    fine_tuning_rate: float = 1e-3
    batch: int = 32
    warmup_epochs: int = 20
    rounds: int = 12
    adaptation_rounds: int = 3
    dwa_lambda: float = 0.03
    match_hidden: float = 0.3
    ewc_lambda: float = 100.0
    lwf_alpha: float = 1.0
    lwf_temperature: float = 2.0
    gfi: GFISettings = field(default_factory=lambda: GFISettings(samples=32))

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a small form of the run, which shows that it works, not how well."""
        return cls(source_epochs=3, warmup_epochs=3, rounds=2, adaptation_rounds=1)


@dataclass
class Result:
    """One row of the table.

    :ivar target_accuracy: on the target's test images, in percent.
    :ivar source_accuracy: of the same network on the source's test images, in percent.
    :ivar trainable: number of trainable parameters.
    :ivar seconds: training time; for CETL with the warm-up, which all variants share.
    :ivar source_error: MSE of T1(S(x)) on target test images over their pixel variance.
    :ivar target_error: the same for T1(T2(x)) against x.
    :ivar history: per quantity its mean in each round.
    """

    method: str
    target_accuracy: float
    source_accuracy: float
    trainable: int
    seconds: float
    source_error: float | None = None
    target_error: float | None = None
    history: dict[str, list[float]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers and strings, for JSON."""
        return asdict(self)
