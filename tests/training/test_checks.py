import pytest
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from coupled_runs import coupled, strategy

from avalanche_cetl import adaptation_benchmark, transfer_benchmark
from avalanche_cetl.common.labels import Rows
from avalanche_cetl.training import NonFiniteLossError
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
