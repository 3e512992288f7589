"""What ``preset="best"`` makes of an experience."""

import logging

import coupled_runs
import pytest
import torch
from coupled_runs import SHAPE, coupled

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CheckpointPlugin,
    InformationMaximization,
    ModuleEncoder,
    SoftTargets,
    adaptation_benchmark,
    load_checkpoint,
    transfer_benchmark,
)
from avalanche_cetl.training.choice import Choice, DataProfile


def images(count=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator), torch.arange(count) % 3


def strategy(model=None, **settings):
    return coupled_runs.strategy(model, preset="best", lr=1e-3, **settings)


def trained(data, **settings):
    s = strategy(**settings)
    s.train(data.train_stream)
    return s


def test_few_labels_are_helped_by_a_probe_on_s():
    data = transfer_benchmark(images(), images(seed=1), labels_per_class=3)
    s = trained(data)
    assert s.round_losses["L_soft"] > 0 and "L_im" not in s.round_losses


def soft_targets(s):
    """Return the preset's SoftTargets of a probe, where it took part."""
    found = [p for p in s.plugins if isinstance(p, SoftTargets) and p.head == "best"]
    return found if "L_soft" in s.round_losses else []


@pytest.mark.parametrize(
    ("images_", "labels", "weight"),
    [(90, 3, 3.0), (90, 10, 3.0), (90, 25, 3 * 10 / 25 * 30 / 25), (90, 30, 1.0)],
)
def test_a_probe_counts_less_the_more_labels_there_are(images_, labels, weight):
    data = transfer_benchmark(images(images_), images(seed=1), labels_per_class=labels)
    (plugin,) = soft_targets(trained(data))
    assert plugin.weight == pytest.approx(weight)


def test_each_experience_has_a_weight_of_its_own():
    counts = (3, 30, 3)
    s, found = strategy(), []
    for count in counts:
        s.train(transfer_benchmark(images(90), images(), labels_per_class=count).train_stream)
        found.append(next(p for p in s.plugins if isinstance(p, SoftTargets)).weight)
    assert found == pytest.approx([3.0, 1.0, 3.0])


def test_where_a_class_has_no_target_label_no_probe_is_promised():
    x, y = images()
    y = torch.where((y == 2) | (torch.arange(30) > 20), -1, y)
    s = strategy()
    s.train(adaptation_benchmark(images(12), (x, y), images(), labels_per_class=2).train_stream)
    (choice,) = [p for p in s.plugins if isinstance(p, Choice)]
    assert choice.told.endswith("the labels alone") and set(s.round_losses) == {"L_c"}


def test_without_target_labels_the_predictions_become_sure_and_even():
    s = trained(adaptation_benchmark(images(), images(seed=2), images(seed=1)))
    assert "L_im" in s.round_losses and "L_soft" not in s.round_losses
    assert s.round_losses["L_c"] > 0


class Names(ModuleEncoder):
    """An S that names a row's class by its first pixel, for a share of the classes."""

    def __init__(self, known, classes=3):
        super().__init__(CICNN(classes, SHAPE, width=0.05), input_shape=SHAPE)
        self.known, self.classes = known, classes

    def cheapest_logits(self, x, features=None):
        label = x[:, 0, 0, 0].long()
        named = torch.where(label < self.known, label, 0)
        return 9 * torch.nn.functional.one_hot(named, self.classes).float()


@pytest.mark.parametrize(
    ("known", "right", "teaches"), [(3, "100%", True), (2, "67%", True), (1, "33%", False)]
)
def test_s_teaches_beside_another_domain_where_its_classes_are_t2s(known, right, teaches):
    x, y = images(1200)  # labels in turn: a sample at even distances would miss classes
    x[:, 0, 0, 0] = y.float()
    model = coupled(source=Names(known))
    s = strategy(model)
    s.train(adaptation_benchmark((x, y), images(seed=2), images(seed=1)).train_stream)
    (choice,) = [p for p in s.plugins if isinstance(p, Choice)]
    assert f"names {right} of them right" in choice.told
    assert ("SoftTargets" in choice.told) is teaches
    assert ("L_soft" in s.round_losses) is teaches and "L_im" in s.round_losses


def test_an_s_that_names_one_frequent_class_does_not_teach():
    x, y = images(400)
    y = torch.where(torch.arange(400) % 10 == 0, 1, 0)  # nine in ten are of class 0
    x[:, 0, 0, 0] = y.float()
    model = coupled(source=Names(1, 2), target=CICNN(2, SHAPE, width=0.05))
    s = strategy(model)
    s.train(adaptation_benchmark((x, y), (x, y), (x[:20], y[:20])).train_stream)
    (choice,) = [p for p in s.plugins if isinstance(p, Choice)]
    assert "names 50% of them right" in choice.told and "SoftTargets" not in choice.told


def other_classes():
    """An S of four classes, which are not T2's three."""
    return ModuleEncoder(CICNN(4, SHAPE, width=0.05), input_shape=SHAPE)


def test_an_s_without_t2s_classes_is_not_asked_for_them():
    s = strategy(coupled(source=other_classes()))
    s.train(adaptation_benchmark(images(), images(seed=2), images(seed=1)).train_stream)
    (choice,) = [p for p in s.plugins if isinstance(p, Choice)]
    assert "right" not in choice.told and "SoftTargets" not in choice.told
    assert "L_soft" not in s.round_losses and "L_im" in s.round_losses


def test_without_any_label_s_itself_teaches_too():
    s = trained(adaptation_benchmark(None, images(seed=2), images(seed=1)))
    assert "L_im" in s.round_losses and s.round_losses["L_soft"] > 0
    assert "L_c" not in s.round_losses


@pytest.mark.parametrize("source", [lambda: None, other_classes])
def test_without_any_label_and_without_t2s_classes_nothing_can_be_learnt(source):
    data = adaptation_benchmark(None, images(seed=2), images(seed=1))
    model = coupled(source=source())
    with pytest.raises(ValueError, match=r"no row has a label, so preset=\"best\" has T2 learn"):
        strategy(model).train(data.train_stream)


def test_a_head_for_s_stands_in_for_its_classes():
    source = other_classes()
    given = SoftTargets(rows="target", head=torch.nn.Linear(source.dim, 3))
    s = strategy(coupled(source=source), plugins=[given])
    s.train(adaptation_benchmark(None, images(seed=2), images(seed=1)).train_stream)
    assert s.round_losses["L_soft"] > 0


def test_without_s_the_labels_teach_alone():
    s = trained(transfer_benchmark(images(), images(seed=1)), model=coupled(source=None))
    assert set(s.round_losses) == {"L_c"}


def test_t1_has_no_part_and_stays_as_it_is():
    torch.manual_seed(0)
    s = trained(transfer_benchmark(images(), images(seed=1)), train_epochs=0)
    before = [p.clone() for p in s.model.decoder.parameters()]
    s = trained(transfer_benchmark(images(), images(seed=1)), train_epochs=2)
    after = list(s.model.decoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_plugin_that_was_given_takes_the_place_of_the_presets():
    mine = InformationMaximization(0.5, prior=[1, 2, 3])
    data = adaptation_benchmark(images(), images(seed=2), images(seed=1))
    s = trained(data, plugins=[mine])
    assert [p for p in s.plugins if isinstance(p, InformationMaximization)] == [mine]


def test_each_experience_is_looked_at_and_the_choice_is_logged(caplog):
    first = adaptation_benchmark(images(), images(seed=2), images(seed=1))
    second = transfer_benchmark(images(), images(seed=1), labels_per_class=2)
    s = trained(first)
    with caplog.at_level(logging.INFO, logger="avalanche_cetl"):
        s.train(second.train_stream)
    (choice,) = [p for p in s.plugins if isinstance(p, Choice)]
    (line,) = [r.message for r in caplog.records if "experience" in r.message]
    assert line == choice.told
    assert "6 labelled target rows, 24 without label" in line and "SoftTargets" in line
    assert "InformationMaximization" not in line


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: transfer_benchmark(images(), images()), (30, 0, 0)),
        (lambda: transfer_benchmark(images(), images(), labels_per_class=2), (6, 24, 0)),
        (lambda: adaptation_benchmark(images(12), images(), images()), (0, 30, 12)),
        (
            lambda: adaptation_benchmark(images(12), images(), images(), labels_per_class=1),
            (3, 27, 12),
        ),
        (lambda: adaptation_benchmark(None, images(), images()), (0, 30, 0)),
    ],
)
def test_a_data_profile_counts_rows_by_label_and_domain(make, found):
    seen = []

    class Look(Choice):
        def before_training_exp(self, strategy, *args, **kwargs):
            seen.append(DataProfile.of(strategy.data, 64, strategy.device))

    trained(make(), plugins=[Look([])], train_epochs=1)
    assert (seen[0].labelled, seen[0].unlabelled, seen[0].others) == found
    assert seen[0].has_source


@pytest.mark.parametrize(
    "make",
    [
        lambda: transfer_benchmark(images(), images(seed=1), labels_per_class=3),
        lambda: adaptation_benchmark(None, images(seed=2), images(seed=1)),
        lambda: adaptation_benchmark(images(), images(seed=2), images(seed=1)),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(make, tmp_path):
    class Stop(CETLPlugin):
        armed = False

        def after_round(self, strategy, *args, **kwargs):
            if self.armed and strategy.clock.train_exp_epochs == 2:
                raise KeyboardInterrupt

    def prepared(armed):
        stop = Stop()
        stop.armed = armed
        plugins = [CheckpointPlugin(tmp_path, every=1), stop]
        return strategy(train_epochs=3, plugins=plugins)

    data = make()
    whole = trained(data, train_epochs=3)
    with pytest.raises(KeyboardInterrupt):
        prepared(True).train(data.train_stream)
    resumed = prepared(False)
    load_checkpoint(resumed, tmp_path)
    resumed.train(data.train_stream)
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
