"""Table 4, distillation on CIFAR-10: teacher ResNet-26, student CI-CNN, one budget for all.

Protocol as in Table 2 (draw, views, validation for strengths, last epoch), with the teacher, which
is trained on the same images, in the place of S. Scale ``full`` reads 4,500 images a class and
chooses on the other 500; of CIFAR-100, where it is on disk, 450 and 50.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

from torch import Tensor, nn

from avalanche_cetl import DecoderHints, FitNetsHints, ModuleEncoder, SoftTargets
from avalanche_cetl.encoders import Encoder
from benchmarks.records import accuracies, cell, results
from benchmarks.rivals.fsp import FSP
from benchmarks.tables import board, table2
from benchmarks.tables.board import Row
from benchmarks.tables.sources import teacher
from benchmarks.tables.transfer import Budget, Job, coupled, naive
from benchmarks.where import Where

TABLE = "table4"
HUNDRED = "CIFAR-100, "
PAPER = {  # Table 4 as printed; which of the middle three is which is inferred
    "teacher": 91.86,
    "student": 87.55,
    "soft targets": 88.45,
    "FitNets": 88.57,
    "FSP": 88.70,
    "CETL gfi": 89.11,
    HUNDRED + "teacher": 65.23,
    HUNDRED + "student": 60.71,
    HUNDRED + "soft targets": 61.03,
    HUNDRED + "FitNets": 61.28,
    HUNDRED + "FSP": 63.33,
    HUNDRED + "CETL gfi": 64.83,
}


@dataclass(frozen=True)
class WithTeacher(Budget):
    """The budget of Table 2, and the teacher's.

    :ivar teacher_epochs: a deep network needs more than the student to be better than it.
    """

    teacher_epochs: int = 1


def _budget(scale: str, teacher_epochs: int, **changes: int) -> WithTeacher:
    return WithTeacher(**(asdict(table2.BUDGETS[scale]) | changes), teacher_epochs=teacher_epochs)


BUDGETS = {
    "smoke": _budget("smoke", 1),
    "cpu": _budget("cpu", 100),
    "full": _budget("full", 100, per_class=4500, validation_per_class=500),
}


class Live(nn.Module):
    """The teacher on standardised images."""

    def __init__(self, job: Job):
        super().__init__()
        self.network = _network(job).to(job.where.device)
        self.pixels = job.pixels

    def forward(self, x: Tensor) -> Tensor:
        """Give logits."""
        return self.network(self.pixels.restore(x))


def _network(job: Job) -> nn.Module:
    assert isinstance(job.encoder, ModuleEncoder)
    return job.encoder.module


class _Classifier(nn.Module):
    """The teacher's logits from its stored features."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor) -> Tensor:
        """Give logits."""
        return self.encoder.classify(features)


def the_teacher(job: Job, _strength: float) -> nn.Module:
    """ResNet-26 itself."""
    return Live(job)


def student(job: Job, _strength: float) -> nn.Module:
    """CI-CNN on the labels alone."""
    return naive(job, job.network())


def _softened(job: Job, weight: float, rows: str = "labelled") -> SoftTargets:
    assert job.encoder is not None
    return SoftTargets(4.0, weight, rows=rows, source=job.source, head=_Classifier(job.encoder))


def soft_targets(job: Job, strength: float) -> nn.Module:
    """Hinton, Vinyals and Dean 2015, at temperature 4; the teacher reads the clean images."""
    return naive(job, job.network(), plugins=[_softened(job, strength)])


def fitnets(job: Job, strength: float) -> nn.Module:
    """Romero et al. 2015: the student's last maps towards those of the teacher's last stage."""
    live = ModuleEncoder(Live(job), input_shape=job.shape)
    hints = FitNetsHints(
        "features.11", "network.blocks", weight=strength, rows="labelled", source=live
    )
    return naive(job, job.network(), plugins=[hints])


def fsp(job: Job, strength: float) -> nn.Module:
    """Yim et al. 2017, with the maps at 32, 16 and 8 pixels."""
    network = job.where.place(job.network())
    live = Live(job).eval().requires_grad_(False)
    plugin = FSP(
        network,
        live,
        ("features.1", "features.4", "features.10"),
        ("network.blocks.3", "network.blocks.7", "network.blocks.11"),
        strength,
        job.train[0][:2],
        job.budget.learning_rate,
    )
    return naive(job, network, plugins=[plugin])


def cetl(variant: str) -> Callable[[Job, float], nn.Module]:
    """CETL as printed."""
    return lambda job, _strength: coupled(job, variant=variant)


def hints(job: Job, strength: float) -> nn.Module:
    """The same with a fixed goal, T1's hidden layers, and a slower stage 2, as in Table 2."""
    return coupled(
        job,
        plugins=[DecoderHints(1.0), _softened(job, strength)],
        variant="gfi",
        dwa_lambda=table2.PENALTIES[1],
        fixed_goal=True,
        lr_factors=(1.0, 0.1),
    )


def soft_targets_on_mixed(job: Job, strength: float) -> nn.Module:
    """Soft targets on the mixed images too, beside the labels, in one step."""
    return table2.on_all(job, _softened(job, strength, "target"))


def best(variant: str) -> Callable[[Job, float], nn.Module]:
    """``preset="best"`` with mixed images; soft targets are the teacher's own, in stage 2."""

    def train(job: Job, strength: float) -> nn.Module:
        return table2.on_mixed(job, variant, [_softened(job, strength, "target")])

    return train


STRENGTHS = (0.3, 1.0, 3.0)
BEST = "CETL gfi, preset best, mixed images"
OF_CIFAR10 = {
    "teacher": Row(the_teacher),
    "student": Row(student),
    "soft targets": Row(soft_targets, STRENGTHS),
    "FitNets": Row(fitnets, STRENGTHS),
    "FSP": Row(fsp, STRENGTHS),
    "soft targets, mixed images": Row(soft_targets_on_mixed, (1.0, 3.0, 10.0), mixed=table2.MIXED),
    "CETL e": Row(cetl("e")),
    "CETL fi": Row(cetl("fi")),
    "CETL gfi": Row(cetl("gfi")),
    "CETL gfi, hints, soft targets": Row(hints, STRENGTHS),
    "CETL e, preset best, mixed images": Row(
        best("e"), (3.0, 10.0, 30.0), tuned_as=BEST, mixed=table2.MIXED, preset="best"
    ),
    "CETL fi, preset best, mixed images": Row(
        best("fi"), (3.0, 10.0, 30.0), tuned_as=BEST, mixed=table2.MIXED, preset="best"
    ),
    BEST: Row(best("gfi"), (3.0, 10.0, 30.0), mixed=table2.MIXED, preset="best"),
}


def _of_cifar100(row: Row) -> Row:
    return replace(
        row,
        scales=("full",),
        data="CIFAR-100",
        changes=(("per_class", 450), ("validation_per_class", 50)),
        tuned_as=None if row.tuned_as is None else HUNDRED + row.tuned_as,
    )


ROWS = OF_CIFAR10 | {HUNDRED + name: _of_cifar100(row) for name, row in OF_CIFAR10.items()}


def source_of(row: str, budget: Budget, root: str, where: Where) -> Encoder:
    """Give the teacher."""
    assert isinstance(budget, WithTeacher)
    return teacher(budget, root, budget.teacher_epochs, ROWS[row].data, where)


run = partial(board.run, TABLE)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found = results(TABLE, scale)
    lines = [
        "| | test accuracy % | share of the gap closed % | paper | its share % |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        data, name = _split(row)
        runs = found.get(row, {})
        values = accuracies(runs)
        shares = _shares(found, row)
        paper = PAPER.get(row)
        between = name not in ("teacher", "student")
        low, top = PAPER[data + "student"], PAPER[data + "teacher"]
        cells = [
            row,
            cell(values, 2, empty="not run"),
            cell(shares if between else [], 0),
            f"{paper:.2f}" if paper else "",
            f"{100 * (paper - low) / (top - low):.0f}" if paper and between else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _split(row: str) -> tuple[str, str]:
    """Data set and method of a row."""
    return (HUNDRED, row.removeprefix(HUNDRED)) if row.startswith(HUNDRED) else ("", row)


def _shares(found: dict, row: str) -> list[float]:
    """By seed: how far from the student's to the teacher's accuracy, in per cent."""
    data, _ = _split(row)
    names = (data + "teacher", data + "student", row)
    seeds = set.intersection(*(set(found.get(name, {})) for name in names))
    shares = []
    for seed in sorted(seeds):
        top, low, own = (found[name][seed]["figures"]["accuracy"] for name in names)
        if top != low:
            shares.append(100 * (own - low) / (top - low))
    return shares
