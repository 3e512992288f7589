import math

import pytest
import torch
from avalanche.evaluation.metric_results import TensorImage
from avalanche.logging import TextLogger
from avalanche.training.plugins import EvaluationPlugin
from coupled_runs import strategy

from avalanche_cetl import (
    CETLPlugin,
    GFISettings,
    SoftTargets,
    ViewConsistency,
    cetl_metrics,
    gfi_metrics,
    transfer_benchmark,
)
from avalanche_cetl.evaluation.metrics import ReconstructionImages, image_grid


def _train(digits, metrics, rounds=2, variant="gfi", loggers=(), plugins=(), **gfi):
    evaluator = EvaluationPlugin(metrics, loggers=list(loggers), collect_all=True)
    run = strategy(
        variant=variant, train_epochs=rounds, warmup_epochs=0, plugins=list(plugins),
        gfi=GFISettings(samples=8, **gfi), evaluator=evaluator,
    )  # fmt: skip
    benchmark = transfer_benchmark(digits(40), digits(10), labels_per_class=4)
    run.train(benchmark.train_stream)
    return run, evaluator.get_all_metrics()


def test_losses_and_penalties_are_emitted_once_a_round(digits):
    strategy, metrics = _train(digits, cetl_metrics())
    for name in ("L_rs", "L_rt", "L_c", "DWA1", "DWA2", "DWA3"):
        (values,) = (v for k, (_, v) in metrics.items() if k.startswith(name + "/"))
        assert len(values) == (1 if name == "DWA2" else 2)
        assert all(math.isfinite(v) and v >= 0 for v in values)
        assert values[-1] == strategy.round_losses[name]


class OwnLoss(CETLPlugin):
    """A user's own: small logits in stage 2."""

    def before_backward(self, strategy, *args, **kwargs):
        if strategy.coupled is not None:
            loss = strategy.coupled.logits.square().mean()
            strategy.record_loss("L_small", loss, strategy.coupled.images)
            strategy.loss = strategy.loss + 0.1 * loss


def test_every_loss_that_a_plugin_records_reaches_the_loggers(digits, tmp_path):
    plugins = [ViewConsistency(1.0), SoftTargets(), OwnLoss()]
    with open(tmp_path / "log.txt", "w") as file:
        strategy, metrics = _train(
            digits, cetl_metrics(), plugins=plugins, loggers=[TextLogger(file)]
        )
    assert {"L_view", "L_balance", "L_soft", "L_small", "DWA1"} <= set(strategy.round_losses)
    text = (tmp_path / "log.txt").read_text()
    for name, value in strategy.round_losses.items():
        (values,) = (v for k, (_, v) in metrics.items() if k.startswith(name + "/"))
        assert values[-1] == value and f"{name}/" in text


def test_metrics_without_losses_emit_none(digits):
    _, metrics = _train(digits, cetl_metrics(losses=False), plugins=[OwnLoss()])
    assert {name.split("/")[0] for name in metrics} == {"DWA1", "DWA2", "DWA3"}


def test_variant_e_has_no_penalties_and_no_shares(digits):
    _, metrics = _train(digits, [*cetl_metrics(), *gfi_metrics()], variant="e")
    assert not any(k.startswith(("DWA", "Shared")) for k in metrics)


def test_shares_per_layer_average_to_the_whole(digits):
    strategy, metrics = _train(digits, gfi_metrics())
    last = {k.split("/train_phase")[0]: v[-1] for k, (_, v) in metrics.items()}
    for name, importance in strategy.importance.items():
        assert last[f"Shared_{name}"] + last[f"Private_{name}"] == pytest.approx(1)
        layers = {k: v for k, v in last.items() if k.startswith(f"Shared_{name}/")}
        assert {k.split("/")[1] for k in layers} == {n.rpartition(".")[0] for n in importance.sizes}
        assert min(layers.values()) <= last[f"Shared_{name}"] <= max(layers.values())


def test_shares_in_a_basis_are_of_directions_and_count_for_all_weights_of_a_layer(digits):
    strategy, metrics = _train(digits, gfi_metrics(), basis="kronecker", rank=3, threshold=0.5)
    last = {k.split("/train_phase")[0]: v[-1] for k, (_, v) in metrics.items()}
    params = dict(strategy.model.named_parameters())
    for name, importance in strategy.importance.items():
        shares, weights = {}, {}
        for parameter, share in importance.shared.items():
            own, directions = (parameter,), importance.values[parameter].numel()
            if parameter in importance.basis:
                own = importance.basis[parameter].parameters
                assert directions < params[parameter].numel()
            assert share * directions == pytest.approx(round(share * directions), abs=1e-4)
            count = sum(params[one].numel() for one in own)
            layer = parameter.rpartition(".")[0]
            shares[layer] = shares.get(layer, 0) + share * count
            weights[layer] = weights.get(layer, 0) + count
        assert weights.keys() == {k.split("/")[1] for k in last if k.startswith(f"Shared_{name}/")}
        for layer, count in weights.items():
            assert last[f"Shared_{name}/{layer}"] == pytest.approx(shares[layer] / count)
        whole = sum(shares.values()) / sum(weights.values())
        assert last[f"Shared_{name}"] == pytest.approx(whole)
        assert last[f"Private_{name}"] == pytest.approx(1 - whole)


def test_without_a_gate_there_are_no_shares_in_the_kronecker_basis(digits):
    _, metrics = _train(digits, [*cetl_metrics(), *gfi_metrics()], basis="kronecker")
    assert not any(k.startswith("Shared") for k in metrics)
    assert {"DWA1", "DWA2", "DWA3"} <= {k.split("/")[0] for k in metrics}


def test_pictures_have_three_rows(digits):
    _, metrics = _train(digits, cetl_metrics(losses=False, dwa=False, images=5, every=2), rounds=3)
    ((_, pictures),) = metrics.values()
    assert len(pictures) == 2 and all(isinstance(p, TensorImage) for p in pictures)
    assert pictures[0].image.shape == (3, 3 * 9 + 1, 5 * 9 + 1)


def test_tensorboard_shows_losses_and_pictures(digits, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    from avalanche.logging import TensorboardLogger

    logger = TensorboardLogger(tmp_path)
    _train(digits, cetl_metrics(images=3), loggers=[logger])
    logger.writer.flush()
    found = event_accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    tags = found.Tags()
    assert any(tag.startswith("L_rs/") for tag in tags["scalars"])
    assert any(tag.startswith("Reconstructions/") for tag in tags["images"])


def test_the_text_logger_prints_losses_and_penalties(digits, tmp_path):
    with open(tmp_path / "log.txt", "w") as file:
        _train(digits, [*cetl_metrics(), *gfi_metrics()], loggers=[TextLogger(file)])
    text = (tmp_path / "log.txt").read_text()
    assert "L_rt/" in text and "Shared_GFI1/" in text


def test_a_grid_is_scaled_by_the_range_of_x():
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = 2.0
    grid = image_grid({"x": x, "T1(T2(x))": x * 5})
    assert grid.min() == 0 and grid.max() == 1


def test_pictures_without_images_or_rounds_are_refused():
    with pytest.raises(ValueError):
        ReconstructionImages(count=0)
