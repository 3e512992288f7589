"""Mini-batches of two domains side by side."""

import pytest
import torch

from benchmarks.methods import adamatch, adda, association, weighted_mmd
from benchmarks.methods.pairs import epochs_of, pairs
from benchmarks.methods.plain import logits


def test_pairs_see_the_longer_set_once(adaptation_job):
    job, _ = adaptation_job(source_count=10, target_count=25, batch=8)
    marks = torch.arange(25.0).view(25, 1, 1, 1).expand_as(job.pair.target)
    object.__setattr__(job.pair, "target", marks)
    seen = list(pairs(job))
    rows = torch.cat([part[:, 0, 0, 0] for _, _, part in seen]).tolist()
    assert len(set(rows)) == len(rows) == 24  # the last row alone would be a batch of one
    assert all(len(a) == len(b) == len(c) for a, b, c in seen)


def test_learning_rates_fall_to_zero_epoch_by_epoch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    rates = []
    for _ in epochs_of(4, optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True)
    assert optimizer.param_groups[0]["lr"] < 1e-6


@pytest.mark.parametrize(
    ("method", "strength"),
    [(adamatch, 1.0), (adda, 0.1), (association, 1.0), (weighted_mmd, 1.0)],
    ids=["adamatch", "adda", "association", "weighted mmd"],
)
def test_a_method_learns_the_target(adaptation_job, method, strength):
    job, labels = adaptation_job(strength=strength, learning_rate=5e-3)
    found = logits(method.train(job), job.pair.target).argmax(1)
    assert float((found == labels).float().mean()) > 0.5
