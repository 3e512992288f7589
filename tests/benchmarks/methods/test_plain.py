"""Training on labels alone, and reading what came of it."""

import pytest
import torch
from torch import nn

from benchmarks.methods.plain import MixedViews, accuracy, labels_alone, logits, source_of


def test_mixed_mini_batches_have_shares_of_classes():
    class Strategy:
        mbatch = [torch.rand(16, 3, 32, 32), torch.arange(16) % 10, torch.zeros(16)]
        mb_x = mbatch[0]

    before = Strategy.mbatch[0]
    MixedViews(lambda x: x, 10).before_forward(Strategy)
    x, y, _ = Strategy.mbatch
    assert y.shape == (16, 10) and torch.allclose(y.sum(1), torch.ones(16))
    assert x.shape == before.shape and not torch.equal(x, before)


def test_labels_alone_learn_the_source(adaptation_job):
    job, _ = adaptation_job(learning_rate=5e-3)
    assert accuracy(labels_alone(job), *job.pair.source) > 60


def test_a_source_is_wider_than_the_target_and_of_its_own_seed(adaptation_job):
    job, _ = adaptation_job(source_width=0.2, source_epochs=1)
    first, second = source_of(job), source_of(job)
    assert first.fingerprint() == second.fingerprint()
    wide = sum(p.numel() for p in first.module.parameters())
    assert wide > 2 * sum(p.numel() for p in job.network().parameters())


def test_logits_are_read_in_eval_mode_and_the_mode_comes_back():
    network = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.9)).train()
    x = torch.rand(7, 2)
    assert torch.equal(logits(network, x, batch=3), network[0](x)) and network.training
    labels = network[0](x).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    assert accuracy(network.eval(), x, labels) == pytest.approx(100 * 6 / 7)
    assert not network.training
