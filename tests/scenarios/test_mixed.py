"""Mixed images as unlabelled target rows."""

import pytest
import torch
from coupled_runs import coupled, strategy
from torchvision.transforms import v2

from avalanche_cetl import (
    CICNN,
    ModuleEncoder,
    SoftTargets,
    adaptation_benchmark,
    mixed_images,
    transfer_benchmark,
    with_mixed_images,
    with_source_features,
)


def _constant(count):
    """Image i is i + 1 everywhere."""
    return (torch.arange(count) + 1.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_cutmix_puts_a_box_of_another_image_in():
    images = _constant(5)
    made = mixed_images(images, 200, kinds=["cutmix"])
    assert made.shape == (200, 1, 8, 8)
    shares = []
    for row, image in enumerate(made[:, 0]):
        own = image == images[row % 5, 0]
        other = image[~own].unique()
        assert len(other) <= 1 and (not len(other) or other[0] in range(1, 6))
        if len(other):  # the rest is a full rectangle
            rows, columns = (~own).any(1), (~own).any(0)
            assert (~own).sum() == rows.sum() * columns.sum()
        shares.append(own.float().mean())
    # The box's share of an image is uniform in [0, 1], and its centre lies anywhere: part of it is
    # outside, so that more than half stays.
    assert 0.5 < torch.stack(shares).mean() < 0.8


def test_mixup_is_a_weighted_mean():
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    made = mixed_images(images, 100, kinds=["mixup"])
    weights = []
    for row, image in enumerate(made):
        own = images[row % 4]
        found = []
        for other in (images[i] for i in range(4) if i != row % 4):
            weight = ((image - other) * (own - other)).sum() / (own - other).square().sum()
            if torch.allclose(weight * own + (1 - weight) * other, image, atol=1e-9):
                found.append(float(weight))
        assert len(found) == 1 and -1e-9 <= found[0] <= 1 + 1e-9
        weights += found
    assert 0.4 < sum(weights) / 100 < 0.6 and min(weights) < 0.1 and max(weights) > 0.9


def test_kinds_come_in_turn_and_the_seed_fixes_all():
    images = torch.rand(3, 1, 8, 8)
    state = torch.random.get_rng_state()
    made = mixed_images(images, 9)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's numbers move
    assert torch.equal(made, mixed_images(images, 9))
    assert not torch.equal(made, mixed_images(images, 9, seed=1))
    pixels = {float(v) for v in images.flatten()}
    for row, image in enumerate(made):
        old = [float(v) in pixels for v in image.flatten()]
        assert all(old) == (row % 2 == 0)  # cutmix keeps pixels, mixup makes new ones


def test_the_benchmark_gets_unlabelled_target_rows(digits):
    plain = transfer_benchmark(digits(30), digits(30, seed=1))
    found = with_mixed_images(plain, 2, kinds=["cutmix"])
    assert type(found) is type(plain) and len(plain.train_stream[0].dataset) == 30
    dataset = found.train_stream[0].dataset
    assert len(dataset) == 90
    assert list(dataset.targets) == [*plain.train_stream[0].dataset.targets, *[-1] * 60]
    assert set(dataset.domain_labels) == {0}
    images = torch.stack([dataset[i][0] for i in range(90)])
    torch.testing.assert_close(images[:30], digits(30)[0])
    seed = "0 train 0"
    torch.testing.assert_close(images[30:], mixed_images(digits(30)[0], 60, seed, ["cutmix"]))
    assert found.train_stream[0].classes_in_this_experience == {0, 1, 2}
    assert len(found.test_stream[0].dataset) == 30
    # Naive cannot read unlabelled rows: it has the others.
    labelled = found.labelled_stream[0].dataset
    assert list(labelled.targets) == list(plain.train_stream[0].dataset.targets)


def test_source_rows_are_not_mixed_and_transforms_are_the_evaluation_s(digits):
    double = v2.Lambda(lambda x: 2 * x)
    data = adaptation_benchmark(
        digits(30), digits(12, seed=1), digits(30), train_transform=v2.Lambda(lambda x: x + 5),
        eval_transform=double,
    )  # fmt: skip
    found = with_mixed_images(data, 1, kinds=["mixup"]).train_stream[0].dataset
    assert (
        len(found) == 12 + 30 + 12 and list(found.domain_labels) == [0] * 12 + [1] * 30 + [0] * 12
    )
    wanted = mixed_images(2 * digits(12, seed=1)[0], 12, "0 train 0", ["mixup"])
    for part in (found.train(), found.eval()):
        torch.testing.assert_close(torch.stack([part[42 + i][0] for i in range(12)]), wanted)
    assert not hasattr(with_mixed_images(data), "labelled_stream")


def test_cetl_trains_on_them_with_stored_features(digits, tmp_path):
    torch.manual_seed(0)
    source = ModuleEncoder(CICNN(3, (1, 8, 8), width=0.05), input_shape=(1, 8, 8))
    mixed = with_mixed_images(transfer_benchmark(digits(30), digits(30, seed=1)), 2)
    stored = with_source_features(mixed, source, tmp_path, dtype="float32")
    rows = stored.train_stream[0].dataset.source_features
    images = [mixed.train_stream[0].dataset[i][0] for i in range(90)]
    torch.testing.assert_close(torch.stack(list(rows)), source(torch.stack(images)))
    run = strategy(coupled(source=source), plugins=[SoftTargets(rows="target")])
    run.train(stored.train_stream)
    assert run.round_losses["L_soft"] > 0
    with pytest.raises(ValueError, match="before with_source_features"):
        with_mixed_images(stored)


def test_images_and_streams_that_cannot_be_mixed_are_refused(digits):
    data = transfer_benchmark(digits(6), digits(6))
    images = torch.rand(3, 1, 4, 4)
    with pytest.raises(ValueError, match="per_image=0"):
        with_mixed_images(data, 0)
    with pytest.raises(ValueError, match=r"streams=\['tarin'\]"):
        with_mixed_images(data, streams=["tarin"])
    for name in ("test", "labelled"):
        with pytest.raises(ValueError, match=r"one or more of \['train'\]"):
            with_mixed_images(with_mixed_images(data), streams=[name])
    with pytest.raises(ValueError, match=r"per_image=1\.5"):
        with_mixed_images(data, 1.5)
    with pytest.raises(ValueError, match="kinds='cutmix'"):
        mixed_images(images, 2, kinds="cutmix")
    with pytest.raises(ValueError, match=r"kinds=\['cutout'\].*cutmix"):
        mixed_images(images, 2, kinds=["cutout"])
    with pytest.raises(ValueError, match="two or more float images"):
        mixed_images(images[:1], 2)
    with pytest.raises(ValueError, match="two or more float images"):
        mixed_images(images.byte(), 2)
    with pytest.raises(ValueError, match="count=-1"):
        mixed_images(images, -1)


def test_an_experience_with_one_target_image_is_named(digits):
    benchmark = adaptation_benchmark(digits(12), [digits(9), digits(1)], [digits(6)] * 2)
    with pytest.raises(ValueError, match=r"experience 1 of the stream 'train' has 1 target image"):
        with_mixed_images(benchmark)


def test_streams_are_a_list_of_names(digits):
    with pytest.raises(TypeError, match="streams='train' has to be a list"):
        with_mixed_images(transfer_benchmark(digits(12), digits(6)), streams="train")
