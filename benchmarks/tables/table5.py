"""Table 5, domain adaptation of digits without target labels.

Every method has the same network (CI-CNN), the same images, augmentation, optimiser (Adam, its
rate falling to zero by a cosine), batch and number of passes over the data; see
``benchmarks/data/digits.py``. Pairs with SVHN and STL-10 are of scale ``full``. S is a wider
CI-CNN, trained on the source images alone. The last epoch counts.

Each method has one strength. It is chosen once per direction, with a seed of its own, among three
values by information maximisation on the target's *training* images, which reads no label; then
it is the same for all seeds. A method without a strength has nothing to choose. What else CETL
has was settled by that score too, and on another pair, ``digits-mini`` (MNIST to optdigits).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    GFISettings,
    ModuleEncoder,
    ViewConsistency,
)
from avalanche_cetl.evaluation import information_maximization
from avalanche_cetl.training.presets import parse_preset
from benchmarks.data.digits import (
    COUNTS,
    DIRECTIONS,
    OTHERS,
    SMALL,
    Pair,
    as_benchmark,
    read_pair,
)
from benchmarks.data.views import jitter, views
from benchmarks.jobs import run_all
from benchmarks.records import Run, accuracies, cell, paired, results, run_once
from benchmarks.rivals import adda, association, weighted_mmd
from benchmarks.rivals.training import predictions
from benchmarks.tables.board import those_there
from benchmarks.tables.transfer import Augmented, cosine, fit_plainly, gfi_of
from benchmarks.where import HERE, Where

TABLE = "table5"
TUNING_SEED = 100
PAPER = {  # Table 5 as printed: MN-US, US-MN, SV-MN, MN-SV, ST-CI, CI-ST; None: no figure
    "source only": (85.55, 65.77, 62.33, 25.95, 54.17, 63.61),
    "SA": (85.89, 51.54, 63.17, 28.52, 54.04, 62.88),
    "DANN": (91.11, 74.01, 73.91, 35.67, 56.91, 66.12),
    "DRCN": (91.80, 88.67, 81.97, 40.05, 58.86, 66.37),
    "ADDA": (89.40, 90.10, 76.00, None, None, None),
    "WDA": (72.30, 65.50, 67.30, 23.5, None, None),
    "CETL gfi": (92.96, 90.89, 83.33, 45.27, 60.11, 66.39),
}
PAIRS = {
    "smoke": DIRECTIONS,
    "cpu": (*DIRECTIONS, SMALL),
    "full": (*DIRECTIONS, SMALL, *OTHERS),
}


@dataclass(frozen=True)
class Budget:
    """What a scale may spend.

    :ivar counts: training images of either domain; None: all.
    :ivar epochs: passes over the data, of every method.
    """

    counts: dict[str, int] | None
    epochs: int
    width: float = 0.25
    source_width: float = 0.5
    source_epochs: int = 15
    warmup_epochs: int = 10
    batch: int = 32
    learning_rate: float = 2e-3
    gfi_samples: int = 64
    input_noise: float = 0.3
    dwa_lambda: float = 0.03
    test_images: int | None = None


BUDGETS = {
    "smoke": Budget({"MN": 200, "US": 180}, 1, 0.05, 0.05, 1, 1, 64, test_images=200),
    "cpu": Budget(COUNTS, 20),
    "full": Budget(None, 50, 1.0, 1.0, 30, 30, 128),
}

Train = Callable[["Job", float], nn.Module]


@dataclass
class Job:
    """One run: data and budget. The pair's test sets are read by :func:`one` alone."""

    pair: Pair
    budget: Budget
    seed: int
    where: Where = HERE
    photographs: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image, ``(C, H, W)``."""
        return self.pair.shape

    @property
    def augment(self) -> Callable[[Tensor], Tensor]:
        """Random views of training images: digits turn, photographs are flipped and shifted."""
        return views if self.photographs else jitter

    def benchmark(self) -> Any:
        """The pair as an Avalanche benchmark."""
        return as_benchmark(self.pair)

    def network(self) -> CICNN:
        """A new network, the same for every method of a seed."""
        torch.manual_seed(self.seed)
        found = CICNN(self.pair.classes, self.shape, width=self.budget.width)
        self.where.place(found)
        return found

    @cached_property
    def source(self) -> ModuleEncoder:
        """S: trained on the source images when a method first asks."""
        torch.manual_seed(self.seed)
        network = CICNN(self.pair.classes, self.shape, width=self.budget.source_width)
        trained = _naive(network, self, self.budget.source_epochs)
        return ModuleEncoder(trained, input_shape=self.shape)


# ------------------------------------------------------------------ methods


def source_only(job: Job, _strength: float) -> nn.Module:
    """The network on source images alone."""
    return _naive(job.network(), job, job.budget.epochs)


def _naive(network: nn.Module, job: Job, epochs: int) -> nn.Module:
    b = job.budget
    stream = job.benchmark().source_stream
    seen = Augmented(job.augment)
    return fit_plainly(network, stream, epochs, b.batch, b.learning_rate, [seen], job.where)


class _Aligned(nn.Module):
    """Subspace alignment behind a fixed network's code, with a linear classifier."""

    def __init__(self, network: nn.Module, job: Job):
        super().__init__()
        from skada import SubspaceAlignment
        from sklearn.linear_model import LogisticRegression

        self.network = network.eval()
        source, target = self.codes(job.pair.source[0]), self.codes(job.pair.target)
        domains = np.r_[np.ones(len(source)), -2 * np.ones(len(target))].astype(int)
        labels = np.r_[job.pair.source[1].cpu().numpy(), -np.ones(len(target))].astype(int)
        size = min(50, *source.shape, *target.shape)
        self.pipeline = SubspaceAlignment(LogisticRegression(max_iter=500), n_components=size)
        self.pipeline.fit(np.r_[source, target], labels, sample_domain=domains)

    @torch.no_grad()
    def codes(self, images: Tensor) -> np.ndarray:
        """Give the network's codes."""
        network: Any = self.network
        parts = [network.forward_features(part) for part in images.split(500)]
        return torch.cat(parts).double().cpu().numpy()

    def forward(self, x: Tensor) -> Tensor:
        """Give log probabilities."""
        found = self.pipeline.predict_log_proba(self.codes(x), sample_domain=-2 * np.ones(len(x)))
        return torch.as_tensor(found)


def subspace_alignment(job: Job, _strength: float) -> nn.Module:
    """SA (Fernando et al. 2013) on the codes of the network trained on source images."""
    return _Aligned(source_only(job, 0.0), job)


class _Jittered(nn.Module):
    """A network that augments its own training images, for libraries that take arrays."""

    def __init__(self, network: CICNN, job: Job):
        super().__init__()
        self.network, self.augment, self.casting = network, job.augment, job.where.casting
        network.hidden.register_forward_hook(_in_float32)  # SKADA's losses are outside of forward

    def forward(self, x: Tensor, sample_weight: Any = None) -> Tensor:
        """Give logits."""
        with self.casting():
            return self.network(self.augment(x) if self.training else x).float()


def _in_float32(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def skada(name: str) -> Train:
    """One of SKADA's deep methods; its layer is the network's code."""

    def train(job: Job, strength: float) -> nn.Module:
        from skada import deep
        from skorch.callbacks import LRScheduler

        b = job.budget
        falling = LRScheduler("CosineAnnealingLR", T_max=b.epochs)
        network = _Jittered(job.network(), job)
        width = network.network.head.in_features
        more: dict[str, Any] = {}
        if name in ("DANN", "CDAN"):
            more["domain_classifier"] = _domain_classifier(
                width * (job.pair.classes if name == "CDAN" else 1)
            )
        target = job.pair.target
        images = torch.cat([job.pair.source[0], target]).cpu().numpy()
        labels = np.r_[job.pair.source[1].cpu().numpy(), np.full(len(target), -1)]
        domains = np.r_[np.ones(len(job.pair.source[0])), -2 * np.ones(len(target))].astype(int)
        net = getattr(deep, name)(
            network,
            layer_name="network.hidden",
            reg=strength,
            batch_size=b.batch,
            max_epochs=b.epochs,
            optimizer=torch.optim.Adam,
            lr=b.learning_rate,
            train_split=None,
            device=job.where.device,
            callbacks=[falling],
            verbose=0,
            **more,
        )
        net.fit(images, labels, sample_domain=domains)
        return net.module_.base_module_.network

    return train


def _domain_classifier(width: int) -> nn.Module:
    """SKADA's own, with a sigmoid: in 0.6 it ends in a softmax over its single unit.

    That is 1 whatever comes in, so its gradient is 0 and DANN and CDAN learn from the source alone.
    """
    from skada.deep.modules import DomainClassifier

    found = DomainClassifier(num_features=min(width, 4096))
    found.classifier[-1] = nn.Sigmoid()
    return found


def rival(module: Any) -> Train:
    """One of ``benchmarks/rivals``."""

    def train(job: Job, strength: float) -> nn.Module:
        network = job.network()
        with job.where.casting():
            module.train(
                network,
                job.pair.source,
                job.pair.target,
                epochs=job.budget.epochs,
                batch=job.budget.batch,
                learning_rate=job.budget.learning_rate,
                augment=job.augment,
                weight=strength,
            )
        return network

    return train


def _coupled(
    job: Job, source: ModuleEncoder | None, plugins: list[CETLPlugin], **settings: Any
) -> nn.Module:
    """Train T2 by CETL."""
    b = job.budget
    network = job.network()  # sets the seed, after S had its own
    model = CoupledModel.build(source, network, job.shape)
    optimizer = torch.optim.Adam(model.parameters(), b.learning_rate)
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        augment=job.augment,
        **job.where.switches(),
        train_mb_size=b.batch,
        train_epochs=b.epochs,
        evaluator=None,
        plugins=[cosine(optimizer, b.epochs), *plugins],
        **settings,
    ).train(job.benchmark().train_stream, pin_memory=False)  # the images lie on the device
    return network


def cetl(
    variant: str,
    with_source: bool = True,
    plugins: Callable[[float], list[CETLPlugin]] | None = None,
) -> Train:
    """CETL; without S it is DRCN: T2's code decoded back to the image itself.

    The strength is that of plugins, or without them the factor on stage 2's learning rate.
    """

    def train(job: Job, strength: float) -> nn.Module:
        b = job.budget
        return _coupled(
            job,
            job.source if with_source else None,
            plugins(strength) if plugins else [],
            variant=variant,
            lr_factors=(1.0, 1.0 if plugins else strength),
            dwa_lambda=b.dwa_lambda,
            gfi=GFISettings(samples=b.gfi_samples, seed=job.seed),
            input_noise=b.input_noise,
            fixed_goal=with_source,
            warmup_epochs=b.warmup_epochs,
        )

    return train


def preset_best(variant: str) -> Train:
    """``preset="best"`` and nothing else: as with late views, but without input noise."""

    def train(job: Job, _strength: float) -> nn.Module:
        own = gfi_of("best", job.budget, job.seed)
        return _coupled(job, job.source, [], variant=variant, preset="best", gfi=own)

    return train


def hints(strength: float) -> list[CETLPlugin]:
    """T1's hidden layers matched too."""
    return [DecoderHints(strength)]


def hints_and_views(strength: float) -> list[CETLPlugin]:
    """The same, and T2's classes of two views of a target image."""
    return [DecoderHints(1.0), ViewConsistency(strength)]


def hints_and_late_views(strength: float) -> list[CETLPlugin]:
    """The same, trusting the slow T2 later and less: a ramp, and French et al.'s threshold."""
    return [DecoderHints(1.0), ViewConsistency(strength, threshold=0.968, rampup_rounds=6)]


HINTS, VIEWS = (0.3, 1.0, 3.0), (3.0, 10.0, 30.0)
AS_IT_IS = "preset best"
BEST = f"CETL gfi, {AS_IT_IS}"
ROWS: dict[str, tuple[Train, tuple[float, ...]]] = {
    "source only": (source_only, (0.0,)),
    "SA": (subspace_alignment, (0.0,)),
    "DANN": (skada("DANN"), (0.1, 0.3, 1.0)),
    "DAN": (skada("DAN"), (0.1, 1.0, 10.0)),
    "DeepCORAL": (skada("DeepCoral"), (0.1, 1.0, 10.0)),
    "CDAN": (skada("CDAN"), (0.1, 0.3, 1.0)),
    "MCC": (skada("MCC"), (0.1, 0.3, 1.0)),
    "ADDA": (rival(adda), (0.03, 0.1, 0.3)),
    "WDA": (rival(weighted_mmd), (0.1, 1.0, 10.0)),
    "Association": (rival(association), (0.1, 0.3, 1.0)),
    "DRCN": (cetl("e", with_source=False), (0.1, 0.3, 1.0)),
    "CETL e": (cetl("e"), (0.1, 0.3, 1.0)),
    "CETL fi": (cetl("fi"), (0.1, 0.3, 1.0)),
    "CETL gfi": (cetl("gfi"), (0.1, 0.3, 1.0)),
    "CETL e, hints": (cetl("e", plugins=hints), HINTS),
    "CETL fi, hints": (cetl("fi", plugins=hints), HINTS),
    "CETL gfi, hints": (cetl("gfi", plugins=hints), HINTS),
    "CETL gfi, hints and views": (cetl("gfi", plugins=hints_and_views), VIEWS),
    "CETL e, hints and late views": (cetl("e", plugins=hints_and_late_views), VIEWS),
    "CETL fi, hints and late views": (cetl("fi", plugins=hints_and_late_views), VIEWS),
    "CETL gfi, hints and late views": (cetl("gfi", plugins=hints_and_late_views), VIEWS),
    f"CETL e, {AS_IT_IS}": (preset_best("e"), (0.0,)),
    f"CETL fi, {AS_IT_IS}": (preset_best("fi"), (0.0,)),
    BEST: (preset_best("gfi"), (0.0,)),
}


#: Rows that take another row's strength: variants of the same method.
TUNED_AS = {
    "CETL fi": "CETL e",
    "CETL gfi": "CETL e",
    "CETL e, hints": "CETL gfi, hints",
    "CETL fi, hints": "CETL gfi, hints",
    "CETL e, hints and late views": "CETL gfi, hints and late views",
    "CETL fi, hints and late views": "CETL gfi, hints and late views",
}


# ------------------------------------------------------------------ the table


@lru_cache(maxsize=2)
def job_of(direction: str, scale: str, root: str, seed: int, where: Where = HERE) -> Job:
    """What the methods of a seed read; S is trained once for all of them."""
    budget = BUDGETS[scale]
    pair = read_pair(direction, root, budget.counts, seed).to(where.device)
    return Job(pair, budget, seed, where, photographs="CI" in direction)


def _settings(row: str, budget: Budget) -> dict[str, Any]:
    """What of the budget a row depends on."""
    found = asdict(budget)
    if not row.startswith(("CETL", "DRCN")):
        for name in ("warmup_epochs", "gfi_samples", "input_noise", "dwa_lambda"):
            del found[name]
    if row.endswith(AS_IT_IS):
        for name in ("warmup_epochs", "input_noise", "dwa_lambda"):
            del found[name]
        found["preset"] = parse_preset("best").describe()
    if not row.startswith("CETL"):
        for name in ("source_width", "source_epochs"):
            del found[name]
    return found


def tune(direction: str, scale: str, root: str, row: str, where: Where) -> str:
    """Choose a strength by a score that reads no label."""
    train, strengths = ROWS[row]
    job = job_of(direction, scale, root, TUNING_SEED, where)

    def scores() -> dict[str, Any]:
        found = {}
        for strength in strengths:
            network = train(job, strength).eval()
            with torch.no_grad():
                logits = torch.cat([network(part) for part in job.pair.target.split(500)])
            score = float(information_maximization(logits))
            found[strength] = score if np.isfinite(score) else -np.inf
        best = max(found, key=lambda strength: found[strength])
        return {"chosen": best, "scores": {str(k): v for k, v in found.items()}}

    settings = {"direction": direction, "strengths": strengths, **_settings(row, job.budget)}
    name = f"{direction} {row} (tuning)"
    run = Run(TABLE, scale, name, TUNING_SEED)
    figures = run_once(run, settings, scores, where)["figures"]
    return f"{direction} {row}: strength {figures['chosen']}, of {figures['scores']}"


def one(direction: str, scale: str, root: str, row: str, seed: int, where: Where) -> str:
    """Train a row with a seed, and read the test sets once."""
    train, strengths = ROWS[row]
    strength = strengths[0]
    if len(strengths) > 1:
        tuned = results(TABLE, scale)[f"{direction} {TUNED_AS.get(row, row)} (tuning)"]
        strength = tuned[TUNING_SEED]["figures"]["chosen"]
    job = job_of(direction, scale, root, seed, where)

    def test() -> dict[str, float]:
        network = train(job, strength)
        limit = job.budget.test_images
        found = {}
        for name, held_out in (
            ("accuracy", job.pair.target_test),
            ("source_accuracy", job.pair.source_test),
        ):
            if held_out is None:
                continue
            x, y = held_out
            right = predictions(network, x[:limit]) == y[:limit].cpu()
            found[name] = 100 * float(right.float().mean())
        return found

    settings = {"direction": direction, "strength": strength, **_settings(row, job.budget)}
    name = f"{direction} {row}"
    figures = run_once(Run(TABLE, scale, name, seed), settings, test, where)["figures"]
    return f"{direction} {row}, seed {seed}: {figures['accuracy']:.2f} %"


def run(
    scale: str,
    root: str,
    seeds: int,
    rows: list[str] | None = None,
    processes: int = 1,
    device: str = "cpu",
) -> None:
    """Run what is missing; a pair whose data are not there stays as it is, "not run".

    :raises OSError: when there is no other pair.
    """
    chosen = rows or list(ROWS)
    where = Where.of(scale, device)
    pairs = those_there(
        list(PAIRS[scale]), lambda one: job_of(one, scale, root, TUNING_SEED, where)
    )
    tunings = [
        (direction, scale, root, row, where)
        for direction in pairs
        for row in dict.fromkeys(TUNED_AS.get(row, row) for row in chosen)
        if len(ROWS[row][1]) > 1
    ]
    run_all(tune, tunings, processes)
    tasks = [
        (direction, scale, root, row, seed, where)
        for seed in range(seeds)
        for direction in pairs
        for row in chosen
    ]
    run_all(one, tasks, processes)


def render(scale: str) -> str:
    """Give the table in Markdown, from the result files alone."""
    found = results(TABLE, scale)
    lines = [
        "| target accuracy % | MN-US | US-MN | paper, MN-US | paper, US-MN "
        "| last row over it, paired, MN-US | US-MN | digits-mini |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        cells = {direction: _cell(found, direction, row) for direction in (*DIRECTIONS, SMALL)}
        gains = []
        for direction in DIRECTIONS:
            runs = found.get(f"{direction} {row}", {})
            lead = paired(found.get(f"{direction} {BEST}", {}), runs) if row != BEST else []
            gains.append(cell(lead, sign=True))
        paper = [f"{value:.2f}" for value in PAPER.get(row, ())[:2]] or ["", ""]
        own = [cells[direction] for direction in DIRECTIONS]
        lines.append("| " + " | ".join([row, *own, *paper, *gains, cells[SMALL]]) + " |")
    lines += ["", "| target accuracy %, paper's in brackets | " + " | ".join(OTHERS) + " |"]
    lines.append("| --- " * (1 + len(OTHERS)) + "|")
    for row in ROWS:
        others = []
        for direction, paper_s in zip(OTHERS, PAPER.get(row, (None,) * 6)[2:], strict=True):
            printed = f" ({paper_s:.2f})" if paper_s is not None else ""
            others.append(_cell(found, direction, row) + printed)
        lines.append("| " + " | ".join([row, *others]) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, dict[int, dict[str, Any]]], direction: str, row: str) -> str:
    return cell(accuracies(found.get(f"{direction} {row}", {})), empty="not run")
