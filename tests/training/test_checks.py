import warnings

import pytest
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer, ReservoirSamplingBuffer
from coupled_runs import coupled, small_coupled, strategy

from avalanche_cetl import adaptation_benchmark, transfer_benchmark
from avalanche_cetl.common.labels import Rows
from avalanche_cetl.training import NonFiniteLossError, Stage
from avalanche_cetl.training.checks import check_experience


def test_an_experience_without_labelled_rows_is_refused(digits):
    experience = transfer_benchmark(digits(20), digits(6), labels_per_class=1).train_stream[0]
    hidden = [i for i, label in enumerate(experience.dataset.targets) if label < 0]
    experience._dataset = experience.dataset.subset(hidden)
    with pytest.raises(ValueError, match="no labelled row"):
        strategy().train(experience)


def test_an_experience_without_target_rows_is_refused(adaptation):
    with pytest.raises(ValueError, match="domain 0"):
        strategy().train(adaptation.source_stream)


def test_an_optimizer_whose_groups_leave_parameters_out_is_named():
    model = coupled()
    first, *rest = model.target_parameters().values()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1)
    with pytest.raises(ValueError, match="decoder_parameters"):
        strategy(model, optimizer=optimizer)


def test_images_of_another_shape_are_named(digits):
    benchmark = transfer_benchmark(digits(12, size=9), digits(6, size=9))
    with pytest.raises(ValueError, match=r"\(1, 9, 9\).*\(1, 8, 8\)"):
        strategy().train(benchmark.train_stream)


def test_labels_outside_the_classes_are_named(digits):
    images, labels = digits(12)
    benchmark = transfer_benchmark((images, 2 * labels), (images, 2 * labels))
    with pytest.raises(ValueError, match=r"label 4.*3 outputs"):
        strategy().train(benchmark.train_stream)


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_labels_outside_the_classes_are_named_before_s_is_judged_by_them(digits, preset):
    images, labels = digits(12)
    unlabelled = torch.full_like(labels, -1)
    rows = images, 2 * labels
    benchmark = adaptation_benchmark(rows, (images, unlabelled), rows)
    with pytest.raises(ValueError, match=r"label 4.*3 outputs"):
        strategy(preset=preset).train(benchmark.train_stream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(digits, value):
    images, labels = digits(12)
    images[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        strategy().train(transfer_benchmark((images, labels), digits(6)).train_stream)


def test_a_diverging_loss_stops_training_with_stage_epoch_and_name(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e12)
    with pytest.raises(NonFiniteLossError, match=r"L_\w+ became .* in stage \d, epoch \d"):
        strategy(model, optimizer=optimizer, train_epochs=9).train(transfer.train_stream)


@pytest.mark.parametrize("preset", ["paper", "best"])
def test_an_experience_without_images_is_named(digits, preset):
    data = transfer_benchmark(digits(20), digits(6)).train_stream[0].dataset
    made = benchmark_from_datasets(train=[data, data.subset([])], test=[data])
    s = strategy(preset=preset)
    with pytest.raises(ValueError, match="experience 1 has no image that training reads"):
        s.train(made.train_stream)
    assert s.clock.train_exp_counter == 1  # the first one was trained


@pytest.mark.parametrize("taught", [False, True])
def test_rows_that_no_stage_reads_are_no_images(taught):
    # such as source rows without a label
    with pytest.raises(ValueError, match="experience 3 has no image that training reads"):
        check_experience(coupled(), Rows(target=[], labelled=[]), 3, taught)


def few_labels(digits, labels=1):
    sets = [digits(24, seed=seed) for seed in range(2)]
    return transfer_benchmark(sets, sets, labels_per_class=labels).train_stream


@pytest.mark.parametrize(
    ("labels", "memory", "told"),
    [
        (1, lambda: ReplayPlugin(12), True),
        (1, lambda: ReplayPlugin(12, storage_policy=ReservoirSamplingBuffer(12)), True),
        (1, lambda: ReplayPlugin(12, storage_policy=ClassBalancedBuffer(12)), False),
        (1, lambda: ReplayPlugin(12, storage_policy=Labelled(12)), False),
        (None, lambda: ReplayPlugin(12), False),
    ],
    ids=["default", "reservoir", "by class", "own", "all labels"],
)
def test_a_memory_of_rows_without_a_label_is_told_before_training(digits, labels, memory, told):
    before = []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, *args, **kwargs):
            before.append([str(one.message) for one in caught if "Replay" in str(one.message)])

    s = strategy(small_coupled(), variant="direct", plugins=[memory(), Watch()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s.train(few_labels(digits, labels))
    assert len(before) == 2 and [bool(found) for found in before] == [told, told]
    assert all("storage_policy=ClassBalancedBuffer" in text for text in before[-1])


class Labelled(ReservoirSamplingBuffer):
    """A user's own policy: labelled rows alone."""

    def post_adapt(self, agent, exp):
        known = [i for i, label in enumerate(exp.dataset.targets) if label >= 0]
        self.update_from_dataset(exp.dataset.subset(known))


def test_a_memory_by_class_brings_old_labelled_rows_back(digits):
    seen = []

    class Watch(SupervisedPlugin):
        def before_forward(self, strategy, *args, **kwargs):
            if strategy.clock.train_exp_counter and strategy.stage is not Stage.COUPLED:
                seen.append(len(strategy.mb_y))

    policy = ClassBalancedBuffer(12)
    replay = ReplayPlugin(12, storage_policy=policy)
    s = strategy(small_coupled(), variant="direct", plugins=[replay, Watch()])
    s.train(few_labels(digits))
    assert max(seen) > 3  # the labelled rows of one experience
