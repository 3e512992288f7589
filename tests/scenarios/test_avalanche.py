"""What an Avalanche user does with benchmarks works on these."""

import pickle
import warnings
from functools import partial
from types import SimpleNamespace

import coupled_runs
import pytest
import torch
from avalanche.benchmarks import benchmark_with_validation_stream
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    bwt_metrics,
    forgetting_metrics,
    forward_transfer_metrics,
    loss_metrics,
)
from avalanche.logging import WandBLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import EWC, Cumulative, LwF, Naive, Replay, SynapticIntelligence
from partners import server
from torch import nn

from avalanche_cetl import (
    GFI,
    CETLStrategy,
    adaptation_benchmark,
    bound_metrics,
    cetl_metrics,
    distillation_benchmark,
    gfi_metrics,
    transfer_benchmark,
    validator_metrics,
)

STRATEGIES = {
    "Naive": (Naive, {}),
    "EWC": (EWC, {"ewc_lambda": 1.0}),
    "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
    "Replay": (Replay, {"mem_size": 20}),
    "SI": (SynapticIntelligence, {"si_lambda": 1.0}),
    "Cumulative": (Cumulative, {}),
    "GFI": (GFI, {"dwa_lambda": 1.0}),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def made(kind, digits, several=False):
    """Of each kind, with the stream that a stock strategy trains on."""
    targets, tests = digits(24, seed=1), digits(15, seed=2)
    if several:
        targets = [targets, digits(24, seed=3, shift=0.1)]
        tests = [tests, digits(15, seed=4, shift=0.1)]
    if kind == "transfer":
        benchmark = transfer_benchmark(targets, tests, labels_per_class=4)
        return benchmark, benchmark.labelled_stream
    if kind == "adaptation":
        benchmark = adaptation_benchmark(digits(24), targets, tests, labels_per_class=2)
        return benchmark, benchmark.labelled_stream if several else benchmark.source_stream
    assert not several
    benchmark = distillation_benchmark(targets, tests)
    return benchmark, benchmark.train_stream


KINDS = [("transfer", False), ("transfer", True), ("adaptation", False), ("adaptation", True),
         ("distillation", False)]  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3))


def stock(name, **options):
    kind, arguments = STRATEGIES[name]
    model = network()
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=16,
        **{"evaluator": None, **arguments, **options},
    )


cetl = partial(coupled_runs.strategy, eval_mb_size=16)


@pytest.mark.parametrize(("kind", "several"), KINDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_stock_strategies_train_on_every_kind(digits, kind, several, name):
    benchmark, stream = made(kind, digits, several)
    strategy = stock(name)
    before = [p.detach().clone() for p in strategy.model.parameters()]
    for experience in stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    after = list(strategy.model.parameters())
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("kind", "several"), KINDS)
def test_continual_metrics_and_ours_side_by_side(digits, kind, several):
    benchmark, stream = made(kind, digits, several)
    metrics = [
        accuracy_metrics(experience=True, stream=True),
        loss_metrics(stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        forward_transfer_metrics(experience=True, stream=True),
        validator_metrics(),
    ]
    ours = [cetl_metrics(), gfi_metrics(), bound_metrics()]
    for strategy, train in (
        (stock("Naive", evaluator=EvaluationPlugin(*metrics), eval_every=0), stream),
        (cetl(evaluator=EvaluationPlugin(*metrics, *ours), eval_every=0), benchmark.train_stream),
    ):
        strategy.eval(benchmark.test_stream)  # before training, which forward transfer needs
        for experience in train:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
            found = strategy.eval(benchmark.test_stream)
        names = {name.split("/")[0] for name in found}
        assert {"Top1_Acc_Exp", "Top1_Acc_Stream", "NegativeEntropy_Exp"} <= names
        if several:
            assert {"ExperienceForgetting", "ExperienceBWT", "StreamForwardTransfer"} <= names
        assert isinstance(strategy, CETLStrategy) == ("Bound_Exp" in names)


@pytest.mark.parametrize(("kind", "several"), KINDS)
def test_a_validation_stream_can_be_split_off(digits, kind, several):
    benchmark, _ = made(kind, digits, several)
    split = benchmark_with_validation_stream(benchmark, 0.25, seed=1)
    for old, train, valid in zip(
        benchmark.train_stream, split.train_stream, split.valid_stream, strict=True
    ):
        assert len(train.dataset) + len(valid.dataset) == len(old.dataset)
        assert len(train.dataset.domain_labels) == len(train.dataset)
    strategy = cetl()
    strategy.train(split.train_stream)
    strategy.eval(split.test_stream)


def test_worker_processes_load_every_kind(digits):
    benchmark, _ = made("adaptation", digits)
    results = []
    for workers in (0, 2):
        strategy = cetl(train_epochs=1)
        torch.manual_seed(3)
        strategy.train(benchmark.train_stream, num_workers=workers, shuffle=False)
        strategy.eval(benchmark.test_stream, num_workers=workers)
        results.append([p.detach().clone() for p in strategy.model.target.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def _sums(benchmark):
    return {
        name: [float(sum(row[0].sum() for row in experience.dataset)) for experience in stream]
        for name, stream in benchmark.streams.items()
    }


@pytest.mark.parametrize(("kind", "several"), KINDS)
def test_every_kind_pickles(digits, kind, several):
    benchmark, _ = made(kind, digits, several)
    again = pickle.loads(pickle.dumps(benchmark))
    assert _sums(again) == _sums(benchmark) and str(again.summary()) == str(benchmark.summary())


def test_processes_that_share_no_memory_load_a_benchmark(digits, partners):
    benchmark, _ = made("adaptation", digits)
    with server().Pool(1) as pool:  # the partners' own
        assert pool.apply(benchmark.summary) == benchmark.summary()


def test_wandb_gets_the_curves(digits, monkeypatch, tmp_path):
    import wandb

    monkeypatch.chdir(tmp_path)
    sent = {}
    # Avalanche 0.6 names a class that has moved within wandb.
    monkeypatch.setattr(wandb, "viz", SimpleNamespace(CustomChart=str), raising=False)
    logger = WandBLogger(params={"mode": "disabled", "id": "one"})
    monkeypatch.setattr(wandb, "log", lambda values, **_: sent.update(values))
    benchmark, _ = made("transfer", digits)
    metrics = EvaluationPlugin(cetl_metrics(images=2), bound_metrics(), loggers=[logger])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = cetl(evaluator=metrics)
        strategy.train(benchmark.train_stream)
        strategy.eval(benchmark.test_stream)
    names = {name.split("/")[0] for name in sent}
    assert {"L_rs", "L_rt", "L_c", "Reconstructions", "Bound_Exp"} <= names
