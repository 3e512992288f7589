"""Everything that a run of the demo depends on, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Labels that every class of the target keeps.
LABELS_PER_CLASS = 10


@dataclass(frozen=True)
class StreamSettings:
    """The continual block: permutations of the source's pixels, one experience each.

    Strengths were chosen as those of :class:`Settings` were, by the average accuracy in the end.
    ``GFIPlugin()`` has none to choose. ``ewc_online`` is of EWC with one sum of importances, in
    which those of earlier experiences count 0.95 times as much after each.
    """

    experiences: int = 10
    epochs: int = 2
    batch: int = 64
    hidden: int = 64
    learning_rate: float = 1e-3
    ewc: float = 100.0
    ewc_online: float = 1000.0
    lwf: float = 3.0
    diagonal: float = 1.0


@dataclass(frozen=True)
class Settings:
    """Everything that a demo run depends on, apart from the seed.

    Networks, learning rates and rounds are those of ``benchmarks/suite``; CETL runs as
    it comes, or by the paper's stages. Strengths of the others were chosen on validation images
    of seeds 100 and 101 (``python -m benchmarks.demo_seeds --choose``), each on a grid that does
    not end at the choice.
    """

    source_width: float = 0.5
    source_epochs: int = 15
    width: float = 0.25
    learning_rate: float = 2e-3
    fine_tuning_rate: float = 1e-3
    batch: int = 32
    rounds: int = 12
    adaptation_rounds: int = 8
    soft_weight: float = 1 / 3
    ewc_lambda: float = 100.0
    lwf_alpha: float = 1.0
    lwf_temperature: float = 2.0
    stream: StreamSettings = field(default_factory=StreamSettings)

    @classmethod
    def quick(cls) -> Settings:
        """Return settings for a small form of the run, which shows that it works, not how well."""
        return cls(
            source_epochs=3,
            rounds=2,
            adaptation_rounds=1,
            stream=StreamSettings(experiences=3, epochs=1),
        )


@dataclass
class Result:
    """One row of the tables of the first two blocks.

    :ivar target_accuracy: on the target's test images, in percent.
    :ivar source_accuracy: of the same network on the source's test images, in percent.
    :ivar trainable: number of trainable parameters.
    :ivar seconds: training time.
    :ivar note: what sets the row apart from the others; may be empty.
    :ivar source_error: MSE of T1(S(x)) on target test images over their pixel variance.
    :ivar target_error: the same for T1(T2(x)) against x.
    :ivar history: per quantity its mean in each round.
    """

    method: str
    target_accuracy: float
    source_accuracy: float
    trainable: int
    seconds: float
    note: str = ""
    source_error: float | None = None
    target_error: float | None = None
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class StreamResult:
    """One row of the continual block.

    :ivar averages: after each experience the mean test accuracy over all experiences so far, in
        percent.
    :ivar first: after each experience the test accuracy on the first one, in percent.
    :ivar seconds: training time.
    """

    method: str
    averages: list[float]
    first: list[float]
    seconds: float
