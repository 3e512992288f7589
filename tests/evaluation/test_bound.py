import math

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from coupled_runs import coupled
from torch import nn

from avalanche_cetl import bound_metrics, transfer_benchmark, with_source_features

SHAPE = (1, 8, 8)


@pytest.fixture
def model():
    return coupled()


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(30), digits(41, seed=1))


def evaluated(model, benchmark, batch=16, **options):
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        eval_mb_size=batch,
        evaluator=EvaluationPlugin(bound_metrics(**options)),
    )
    found = strategy.eval(benchmark.test_stream)
    assert all(name.endswith("/eval_phase/test_stream/Task000/Exp000") for name in found)
    return {name.split("_Exp/")[0]: value for name, value in found.items()}


def naive(model, dataset):
    """Image by image, in plain Python numbers."""
    model.eval()
    rows = [(x, int(y)) for x, y, *_ in dataset]
    images = torch.stack([x for x, _ in rows]).double()
    scale = math.sqrt(float((images - images.mean(0)).square().mean()))
    differ = wrong = source_gap = target_gap = 0.0
    with torch.no_grad():
        for x, y in rows:
            x = x[None]
            ours, theirs = model(x).argmax().item(), model.source.logits(x).argmax().item()
            differ += ours != theirs
            wrong += ours != y
            for kind, image in (
                ("s", model.reconstruct_source(x)),
                ("t", model.reconstruct_target(x)),
            ):
                gap = math.sqrt(float((image - x).square().mean()))
                source_gap += gap * (kind == "s")
                target_gap += gap * (kind == "t")
    n = len(rows)
    return {
        "Disagreement": differ / n,
        "SourceGap": source_gap / n / scale,
        "TargetGap": target_gap / n / scale,
        "TargetError": wrong / n,
    }


def test_the_bound_equals_the_naive_formula(model, benchmark):
    found = evaluated(model, benchmark, source_error=0.1, error=True)
    wanted = naive(model, benchmark.test_stream[0].dataset)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    assert found["Bound"] == pytest.approx(
        0.1 + 2 * wanted["Disagreement"] + 3 * wanted["SourceGap"] + 2 * wanted["TargetGap"]
    )
    assert found["TargetError"] < found["Bound"]


def test_the_bound_depends_neither_on_batches_nor_on_stored_features(model, benchmark, tmp_path):
    live = evaluated(model, benchmark, batch=7)
    assert live == pytest.approx(evaluated(model, benchmark, batch=41), rel=1e-6)
    stored = with_source_features(benchmark, model.source, tmp_path, dtype="float32")
    model.source.encode = None  # it must not run
    assert evaluated(model, stored, batch=7) == pytest.approx(live, rel=1e-5)


def test_labels_are_read_only_where_the_error_is_asked_for(model, digits):
    x, y = digits(20)
    right = evaluated(model, transfer_benchmark((x, y), (x, y)))
    other = evaluated(model, transfer_benchmark((x, y), (x, (y + 1) % 3)))
    assert right == other and "TargetError" not in right


def test_a_source_with_other_classes_needs_a_head(model, benchmark):
    torch.manual_seed(1)
    head = nn.Linear(16, 3)
    found = evaluated(model, benchmark, head=head)
    x = torch.stack([row[0] for row in benchmark.test_stream[0].dataset])
    model.eval()
    with torch.no_grad():
        wanted = (head(model.source(x)).argmax(1) != model(x).argmax(1)).float().mean()
    assert found["Disagreement"] == pytest.approx(float(wanted))
    with pytest.raises(ValueError, match=r"3 classes|give head="):
        evaluated(model, benchmark, head=nn.Linear(16, 5))


def test_a_head_is_read_in_evaluation_mode(model, benchmark):
    torch.manual_seed(1)
    head = nn.Sequential(nn.Dropout(0.9), nn.Linear(16, 3))
    found = evaluated(model, benchmark, head=head.train())
    assert found == evaluated(model, benchmark, head=head[1])


def test_models_and_errors_that_have_no_bound_are_refused(model, benchmark):
    with pytest.raises(ValueError, match="source_error=2"):
        bound_metrics(source_error=2)
    alone = coupled(source=None)
    with pytest.raises(ValueError, match="source network"):
        evaluated(alone, benchmark)


def test_one_image_has_no_gap_and_no_bound(model, digits):
    x, y = digits(12)
    found = evaluated(model, transfer_benchmark((x, y), (x[:1], y[:1])), error=True)
    assert all(math.isnan(found[name]) for name in ("SourceGap", "TargetGap", "Bound"))
    assert found["Disagreement"] in (0, 1) and found["TargetError"] in (0, 1)
