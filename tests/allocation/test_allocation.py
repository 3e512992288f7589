import math

import pytest
import torch
from coupled_runs import coupled, snapshot, strategy
from networks import growing

from avalanche_cetl import CETLPlugin, GFISettings, Quantile, transfer_benchmark
from avalanche_cetl.allocation import PAIRS, Allocation
from avalanche_cetl.training import Stage


def test_importances_belong_to_the_weights_and_anchors_of_algorithm_1(transfer):
    model = coupled()
    anchors = {}

    class Watch(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            anchors[strategy.stage] = snapshot(model)

    s = strategy(model, warmup_epochs=0, plugins=[Watch()])
    s.train(transfer.train_stream)
    stages = {"GFI1": Stage.SOURCE, "GFI2": Stage.COUPLED, "GFI3": Stage.COUPLED}
    for name, importance in s.importance.items():
        part = model.target_parameters() if name == "GFI3" else model.decoder_parameters()
        assert importance.values.keys() == part.keys()
        for key, anchor in importance.anchors.items():
            assert torch.equal(anchor, anchors[stages[name]][key])
        assert all((value >= 0).all() for value in importance.values.values())
        assert all(0 <= share <= 1 for share in importance.shared.values())


def test_penalties_begin_with_the_importances_that_they_read(transfer):
    s = strategy(warmup_epochs=0, train_epochs=1)
    s.train(transfer.train_stream)
    assert "DWA2" not in s.round_losses and s.round_losses["DWA1"] > 0
    s = strategy(warmup_epochs=0, train_epochs=2)
    s.train(transfer.train_stream)
    assert s.round_losses["DWA2"] > 0


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_a_strong_penalty_holds_the_weights_near_their_anchors(transfer, basis):
    distances = []
    settings = GFISettings(samples=8, threshold=0.0, probability=1.0, basis=basis)
    for lam in (0.0, 1e3):
        model = coupled()
        watch = {}

        class Watch(CETLPlugin):
            def after_stage(self, strategy, *args, model=model, watch=watch, **kwargs):
                watch[strategy.stage] = snapshot(model)

        s = strategy(
            model,
            variant="gfi",
            dwa_lambda=lam,
            gfi=settings,
            warmup_epochs=5,
            plugins=[Watch()],
            lr=1e-3,
        )
        s.train(transfer.train_stream)
        distances.append(
            sum(
                (watch[Stage.SOURCE][n] - watch[Stage.COUPLED][n]).square().sum()
                for n in model.decoder_parameters()
            )
        )
    assert distances[1] < 0.7 * distances[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"fisher": "empirical"},
        {"estimator": "rank", "threshold": Quantile(0.7)},
        {"estimator": "histogram"},
        {"normalize": False, "refresh_every": 2},
        {"basis": "kronecker", "rank": 2, "probability": 0.9, "estimator": "rank"},
        {"basis": "kronecker", "probability": 0.9, "fisher": "empirical"},
    ],
)
def test_settings_decide_how_importances_are_measured(transfer, settings):
    s = strategy(gfi=GFISettings(samples=12, **settings), train_epochs=1)
    s.train(transfer.train_stream)
    shares = s.importance["GFI1"]
    if "threshold" in settings:
        total = sum(shares.shared[n] * shares.sizes[n] for n in shares.sizes)
        assert 0 < total / sum(shares.sizes.values()) <= 0.3 + 1e-3


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
@pytest.mark.parametrize(
    ("variant", "gate"), [("fi", {}), ("gfi", {}), ("gfi", {"threshold": 0.5, "probability": 0.9})]
)
def test_cetl_pays_for_moves_in_the_kronecker_basis(transfer, variant, gate, alternate):
    model = coupled()
    settings = GFISettings(samples=8, basis="kronecker", rank=4, **gate)
    s = strategy(
        model,
        variant=variant,
        gfi=settings,
        alternate=alternate,
        train_epochs=2,
        dwa_lambda=0.1,
        train_mb_size=8,
    )
    s.train(transfer.train_stream)
    for name in ("DWA1", "DWA2", "DWA3"):
        assert math.isfinite(s.round_losses[name]) and s.round_losses[name] > 0
    for name, importance in s.importance.items():
        part = model.target_parameters() if name == "GFI3" else model.decoder_parameters()
        assert importance.anchors.keys() == part.keys() and importance.basis
        assert importance.values.keys() == part.keys() - importance.basis.folded
        assert importance.misfits(part) == [] and bool(importance.shared) == bool(gate)


def test_plain_and_generalized_information_train_alike_without_a_gate_in_the_kronecker_basis(
    transfer,
):
    settings = GFISettings(samples=8, basis="kronecker")
    runs = []
    for variant in ("fi", "gfi"):
        s = strategy(variant=variant, gfi=settings, train_epochs=2, dwa_lambda=0.1)
        torch.manual_seed(0)
        s.train(transfer.train_stream)
        runs.append(s)
    assert runs[0].round_losses == runs[1].round_losses


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_importances_go_on_where_a_head_grows_with_the_classes(digits, basis, alternate):
    x, y = digits(30, classes=2)
    benchmark = transfer_benchmark([(x, y), (1 - x, y + 2)], [(x, y)] * 2)
    settings = GFISettings(samples=8, basis=basis)
    model = coupled(target=growing(masking=False))
    s = strategy(model, gfi=settings, alternate=alternate, dwa_lambda=0.1)
    for number, experience in enumerate(benchmark.train_stream):
        s.train(experience, eval_streams=[])
        assert len(model.target.module.head.classifier.weight) == 2 * (number + 1)
    assert all(math.isfinite(s.round_losses[name]) for name in ("DWA1", "DWA2", "DWA3"))
    params = dict(model.named_parameters())
    assert all(one.misfits(params) == [] for one in s.importance.values())


@pytest.mark.parametrize(("kind", "strength"), [(None, 1.0), ("gfi", 0.0)])
def test_an_allocation_without_kind_or_strength_measures_nothing(kind, strength):
    allocation = Allocation(kind, GFISettings(), strength)
    allocation.refresh(("GFI1",), coupled(), 0, 4, read=None)
    assert allocation.importance == {} and allocation.penalty("GFI1", coupled()) is None


@pytest.mark.parametrize(
    ("first", "every", "measured"), [(0, 1, [0, 1, 2, 3, 4]), (0, 2, [0, 2, 4]), (1, 3, [1, 3])]
)
def test_importances_are_measured_at_once_and_then_every_so_many_rounds(
    monkeypatch, first, every, measured
):
    model, rounds, taken = coupled(), [], []
    monkeypatch.setattr(
        "avalanche_cetl.allocation.allocation.measure_importance",
        lambda model, pair, rows, *others: (pair, rows),
    )
    allocation = Allocation("gfi", GFISettings(samples=3, refresh_every=every), 1.0)
    for epoch in range(first, 5):
        before = dict(allocation.importance)
        allocation.refresh(("GFI1", "GFI2"), model, epoch, 6, tuple)
        if allocation.importance != before:
            rounds.append(epoch)
            taken += [rows for _, rows in allocation.importance.values()]
    assert rounds == measured
    assert all(len(set(rows)) == 3 and set(rows) <= set(range(6)) for rows in taken)
    assert [pair for pair, _ in allocation.importance.values()] == [PAIRS["GFI1"], PAIRS["GFI2"]]
