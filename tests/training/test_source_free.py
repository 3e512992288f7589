"""Adaptation without source data: no row has a label, and plugins alone teach classes."""

from functools import partial

import coupled_runs
import pytest
import torch
from coupled_runs import SHAPE, coupled, source_net
from networks import Heads, growing
from torch import nn

from avalanche_cetl import InformationMaximization, ModuleEncoder, SoftTargets, adaptation_benchmark
from avalanche_cetl.plugins import CETLPlugin, Stage


def benchmark(count=48):
    torch.manual_seed(1)
    labels = torch.arange(count) % 3
    images = torch.rand(count, *SHAPE) * 0.3
    for row, label in enumerate(labels.tolist()):
        images[row, :, :, 2 * label : 2 * label + 3] += 0.7
    return adaptation_benchmark(None, (images, labels), (images, labels)), images, labels


def strategy(plugins, rounds=1, **settings):
    model = coupled(target=source_net(1))
    return coupled_runs.strategy(model, plugins=plugins, train_epochs=rounds, **settings)


def soft(weight=1.0):
    return SoftTargets(weight=weight, temperature=2.0, rows="target")


def test_the_training_stream_has_target_rows_without_labels_alone():
    made, images, _ = benchmark()
    data = made.train_stream[0].dataset
    assert len(data) == len(images)
    assert {int(label) for label in data.targets} == {-1}
    assert {int(domain) for domain in data.domain_labels} == {0}
    assert set(made.streams) == {"train", "test"}


@pytest.mark.parametrize("variant", ["gfi", "e", "f", "u", "joint", "two_step", "direct"])
@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_every_variant_trains_and_classifies_nothing(variant, alternate):
    made, _, _ = benchmark()
    s = strategy([soft()], variant=variant, alternate=alternate)
    before = next(iter(s.model.target.parameters())).clone()
    s.train(made.train_stream)
    assert s.round_losses["L_soft"] > 0 and "L_c" not in s.round_losses
    assert not torch.equal(before, next(iter(s.model.target.parameters())))


@pytest.mark.parametrize("variant", ["e", "joint", "direct"])
def test_t2_learns_the_classes_of_s(variant):
    made, images, labels = benchmark()
    source = source_net()
    teacher = torch.optim.Adam(source.parameters(), 1e-2)
    for _ in range(40):
        teacher.zero_grad()
        nn.functional.cross_entropy(source(images), labels).backward()
        teacher.step()
    s = strategy([soft(3.0)], rounds=8, variant=variant)
    s.model.source = ModuleEncoder(source, input_shape=SHAPE)
    s.train(made.train_stream)
    target = s.model.target.eval()
    right = (source.eval()(images).argmax(1) == labels).float().mean()
    found = (target(images).argmax(1) == labels).float().mean()
    assert right > 0.95 and found > 0.8


def test_a_merged_step_reads_the_clean_target_rows_and_shows_t2s_logits():
    made, images, _ = benchmark()
    seen = []

    class Watch(CETLPlugin):
        def after_forward(self, strategy, *args, **kwargs):
            assert strategy.stage is Stage.MERGED
            seen.append((strategy.mb_x.clone(), strategy.mb_output.detach().clone()))
            assert torch.equal(strategy.mb_output, strategy.coupled.logits)

    s = strategy([soft(), Watch()], variant="joint", augment=lambda x: x.flip(3))
    s.train(made.train_stream)
    assert len(seen) == 3 and all(output.shape == (16, 3) for _, output in seen)
    assert torch.isin(seen[0][0], images).all()


def test_without_a_plugin_that_teaches_it_says_what_to_do():
    made, _, _ = benchmark()
    with pytest.raises(ValueError, match="InformationMaximization"):
        strategy([]).train(made.train_stream)
    with pytest.raises(ValueError, match="labelled row"):
        strategy([SoftTargets(weight=1.0, temperature=2.0, rows="labelled")]).train(
            made.train_stream
        )
    strategy([InformationMaximization(1.0)]).train(made.train_stream)


def with_head(head, **settings):
    return coupled_runs.strategy(coupled(target=head), lr=3e-3, **settings)


HEADS = [growing, partial(Heads, masking=True)]


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize(
    "settings", [{"preset": "best"}, {"preset": "paper", "variant": "e", "plugins": [soft()]}]
)
def test_heads_that_grow_learn_all_their_outputs_without_a_label(make, settings):
    made, images, _ = benchmark()
    s = with_head(make(outputs=3), train_epochs=8, **settings)
    s.train(made.train_stream)
    assert s.round_losses["L_soft"] > 0
    tasks = torch.zeros(len(images), dtype=torch.long)
    logits = s.model.target.eval()(images, tasks)
    assert logits.shape[1] == 3 and logits.min() > -100  # none is masked
    assert s.eval(made.test_stream) is not None


@pytest.mark.parametrize("make", HEADS)
def test_a_head_with_fewer_outputs_than_s_has_classes_is_told_how_many(make):
    with pytest.raises(ValueError, match=r"has 3 classes, the target network 2.*features=3"):
        with_head(make(outputs=2), preset="best").train(benchmark()[0].train_stream)
    s = with_head(make(outputs=2), variant="direct", plugins=[soft()])
    with pytest.raises(ValueError, match="a head that grows has as many outputs"):
        s.train(benchmark()[0].train_stream)
