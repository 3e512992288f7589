"""What jobs share over methods and strengths."""

from dataclasses import replace

import torch

from benchmarks.data.views import jitter, views
from benchmarks.methods.job import AdaptationJob
from benchmarks.tables.board import Place
from benchmarks.tables.table2 import TABLE


def test_every_method_of_a_seed_starts_from_the_same_network(adaptation_job):
    job, _ = adaptation_job()
    first, second = (replace(job, strength=s).network().state_dict() for s in (0.1, 1.0))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = replace(job, seed=1).network().state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_digits_turn_and_photographs_are_flipped(adaptation_job):
    job, _ = adaptation_job()
    plain = AdaptationJob(budget=job.budget, seed=0, pair=job.pair, make_source=None)
    assert plain.augment is jitter and replace(plain, photographs=True).augment is views


def test_stored_features_lie_beside_their_images(photographs, small_source):
    job = TABLE.job(Place("table2", "smoke", "nowhere", "baseline", "CIFAR-10"), 0, 0.0)
    dataset = job.labelled_stream()[0].dataset
    stored = torch.stack(list(dataset.source_features)[:5])
    assert torch.equal(stored, job.features[:5])
    assert job.shape == (3, 32, 32) and job.classes == 10
