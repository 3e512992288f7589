"""Where DWA matters: what the rows hold and what is measured."""

import pytest
import torch
from coupled_runs import SHAPE, coupled, strategy

from avalanche_cetl import CETLPlugin, transfer_benchmark
from avalanche_cetl.training import Stage
from benchmarks import penalty


def trained(*plugins):
    torch.manual_seed(0)
    images = torch.rand(24, *SHAPE)
    data = transfer_benchmark((images, torch.arange(24) % 3), (images, torch.zeros(24).long()))
    run = strategy(
        variant="e", stage_epochs=(1, 2, 1), train_mb_size=8, train_epochs=2, plugins=list(plugins)
    )
    run.train(data.train_stream)
    return images


class Moved(CETLPlugin):
    """How far T1 went in each stage 2."""

    def __init__(self):
        super().__init__()
        self.far = []

    def before_stage(self, strategy, *args, **kwargs):
        self.old = [p.detach().clone() for p in penalty._decoder(strategy)]

    def after_stage(self, strategy, *args, **kwargs):
        if strategy.stage is Stage.COUPLED:
            pairs = zip(penalty._decoder(strategy), self.old, strict=True)
            self.far.append(sum(float((p - old).square().sum()) for p, old in pairs))


def test_the_uniform_penalty_holds_t1_where_stage_1_left_it():
    free, held = Moved(), Moved()
    trained(free)
    trained(penalty.Uniform(1e4), held)
    assert len(free.far) == len(held.far) == 2
    assert all(b < a / 2 for a, b in zip(free.far, held.far, strict=True))


def test_l_rs_is_measured_around_every_stage_2():
    images = torch.rand(4, *SHAPE)
    kept = penalty.Kept(images)
    trained(kept)
    assert len(kept.before) == len(kept.after) == 2
    assert all(value > 0 for value in kept.before + kept.after)
    assert kept.before != kept.after


def test_the_error_is_that_of_t1_on_s_over_the_variance():
    model = coupled()
    images = torch.rand(4, *SHAPE)
    model.fit_source_statistics(model.source_features(images))
    found = penalty.Kept(images)._error(model)
    with torch.no_grad():
        shown = model.eval().reconstruct_source(images)
    wanted = ((shown - images) ** 2).mean() / images.var()
    assert found == pytest.approx(float(wanted), rel=1e-3)
