"""Benchmarks with source features: same numbers as S run live, and the view always the same."""

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios import EagerCLStream
from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from coupled_runs import coupled, strategy
from safetensors.torch import save_file
from stores import SHAPE, Counting
from torch import nn
from torchvision.transforms.v2 import RandomHorizontalFlip

from avalanche_cetl import (
    CICNN,
    DecoderHints,
    Encoder,
    GFISettings,
    PrecomputedEncoder,
    SoftTargets,
    adaptation_benchmark,
    cetl_metrics,
    plot_benchmark,
    transfer_benchmark,
    with_mixed_images,
    with_source_features,
)
from avalanche_cetl.features.attach import features_are_of
from avalanche_cetl.features.store import default_cache_dir
from avalanche_cetl.scenarios.streams import benchmark_of, experience_of
from avalanche_cetl.training import VARIANTS


def trained(benchmark, encoder, variant="gfi", **options):
    options = {"dwa_lambda": 0.1, "gfi": GFISettings(samples=24), "train_epochs": 2, **options}
    run = strategy(coupled(source=encoder), variant=variant, **options)
    torch.manual_seed(2)
    for experience in benchmark.train_stream:
        run.train(experience)
    return run


DISTILLING = {"plugins": [DecoderHints(0.1), SoftTargets(), SoftTargets(rows="target")]}


@pytest.mark.parametrize(
    ("variant", "options"),
    [(name, {}) for name in VARIANTS]
    + [("gfi", {"alternate": "iteration", "plugins": [DecoderHints(0.1), SoftTargets()]})],
)
def test_training_on_stored_features_gives_the_weights_of_the_source_run_live(
    tmp_path, transfer, encoder, variant, options
):
    stored = with_source_features(transfer, encoder, tmp_path, dtype="float32")
    live = trained(transfer, encoder, variant, **options)
    Counting.images = 0
    found = trained(stored, encoder, variant, **options)
    assert Counting.images == 0
    for name, value in live.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert found.round_losses == pytest.approx(live.round_losses, rel=1e-5)


def test_features_in_half_precision_train_as_well(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, encoder, tmp_path)
    assert transfer.train_stream[0].dataset[0] is not None
    assert stored.train_stream[0].dataset[0][2].dtype == torch.float16
    found = trained(stored, encoder, train_epochs=1)
    live = trained(transfer, encoder, train_epochs=1)
    assert found.round_losses["L_rs"] == pytest.approx(live.round_losses["L_rs"], rel=1e-2)


def test_items_attributes_and_streams_gain_features_alone(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, encoder, tmp_path, dtype="float32")
    assert list(stored.streams) == list(transfer.streams)
    for name, stream in transfer.streams.items():
        old, new = stream[0], stored.streams[name][0]
        assert new.classes_in_this_experience == old.classes_in_this_experience
        assert new.task_label == old.task_label and new.current_experience == 0
        assert list(new.dataset.targets) == list(old.dataset.targets)
        assert list(new.dataset.domain_labels) == list(old.dataset.domain_labels)
        assert type(new.dataset) is type(old.dataset) and len(new.dataset) == len(old.dataset)
        for mode in ("train", "eval"):
            for i in (0, len(old.dataset) - 1):
                x, y, features, task = getattr(new.dataset, mode)()[i]
                wanted = getattr(old.dataset, mode)()[i]
                assert torch.equal(x, wanted[0]) and (y, task) == (wanted[1], wanted[-1])
                torch.testing.assert_close(features, encoder(x[None])[0])
                assert torch.equal(new.dataset.source_features[i], features)
    subset = stored.train_stream[0].dataset.subset([3, 5])
    assert torch.equal(subset[1][2], stored.train_stream[0].dataset[5][2])
    assert torch.equal(subset.source_features[1], subset[1][2])
    both = subset.concat(stored.train_stream[0].dataset)
    assert torch.equal(both[2 + 7][2], stored.train_stream[0].dataset[7][2])


def test_hidden_labels_do_not_come_back(tmp_path, digits, encoder):
    benchmark = adaptation_benchmark(digits(40), digits(30, seed=1), digits(20, seed=2))
    stored = with_source_features(benchmark, encoder, tmp_path)
    dataset = stored.train_stream[0].dataset
    hidden = [i for i, d in enumerate(dataset.domain_labels) if d == 0]
    assert len(hidden) == 30
    assert {dataset[i][1] for i in hidden} == {-1} == {dataset.targets[i] for i in hidden}


def test_datasets_pickle_for_worker_processes(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, encoder, tmp_path, dtype="float32")
    dataset = stored.train_stream[0].dataset
    dataset[0]
    copied = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copied[7][2], dataset[7][2])


@pytest.mark.parametrize("plugin", [lambda: EWCPlugin(1.0), LwFPlugin, lambda: ReplayPlugin(10)])
def test_stock_strategies_run_on_data_with_features(tmp_path, digits, encoder, plugin):
    benchmark = transfer_benchmark(digits(20), digits(20, seed=1))
    stored = with_source_features(benchmark, encoder, tmp_path)
    model = CICNN(3, SHAPE, width=0.05)
    naive = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=[plugin()],
        evaluator=None,
    )
    for _ in range(2):
        naive.train(stored.train_stream)
    naive.eval(stored.test_stream)


def test_metrics_draw_pictures_without_the_source(tmp_path, transfer, encoder):
    from avalanche.training.plugins import EvaluationPlugin

    stored = with_source_features(transfer, encoder, tmp_path)
    metrics = cetl_metrics(images=4)
    Counting.images = 0
    trained(stored, encoder, evaluator=EvaluationPlugin(*metrics, loggers=[]), train_epochs=1)
    assert Counting.images == 0
    assert metrics[-1].result() is not None


def test_views_types_and_streams_that_cannot_be_are_refused(tmp_path, transfer, encoder):
    for arguments, message in (
        ({"views": 0}, "views=0"),
        ({"dtype": "int8"}, "int8"),
        ({"streams": ["tran"]}, "tran"),
    ):
        with pytest.raises(ValueError, match=message):
            with_source_features(transfer, encoder, tmp_path, **arguments)
    with pytest.raises(TypeError, match=r"streams='train' has to be a list.*\['train'\]"):
        with_source_features(transfer, encoder, tmp_path, streams="train")
    with pytest.raises(TypeError, match="Encoder"):
        with_source_features(transfer, nn.Linear(2, 2), tmp_path)


def test_chosen_streams_alone_get_features(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, encoder, tmp_path, streams=["train"])
    assert Counting.images == 60
    assert len(stored.train_stream[0].dataset[0]) == 4
    assert len(stored.test_stream[0].dataset[0]) == 3


# ------------------------------------------------------------------ precomputed


def test_precomputed_features_train_as_the_network_does(tmp_path, transfer, encoder):
    dataset = transfer.train_stream[0].dataset.eval()
    features = encoder(torch.stack([row[0] for row in dataset]))
    np.save(tmp_path / "features.npy", features.numpy())
    np.savez(tmp_path / "features.npz", features=features.numpy(), other=np.zeros(3))
    save_file({"anything": features}, tmp_path / "features.safetensors")
    live = trained(transfer, encoder)
    for name in ("features.npy", "features.npz", "features.safetensors"):
        given = PrecomputedEncoder(tmp_path / name)
        found = trained(with_source_features(transfer, given), given)
        for key, value in live.model.state_dict().items():
            torch.testing.assert_close(found.model.state_dict()[key], value, rtol=1e-5, atol=1e-5)
    given = PrecomputedEncoder({"train": [features], "test": features[:30].numpy()})
    stored = with_source_features(transfer, given)
    assert torch.equal(stored.test_stream[0].dataset[29][2], features[29])
    assert given.dim == 16 and "60" in given.extra_repr()


def test_precomputed_features_that_do_not_fit_are_refused(tmp_path, transfer):
    good = torch.rand(60, 5)
    with pytest.raises(ValueError, match="59 rows, but its data set has 60"):
        with_source_features(transfer, PrecomputedEncoder(good[1:]))
    with pytest.raises(ValueError, match="one view"):
        with_source_features(transfer, PrecomputedEncoder(good), views=2)
    with pytest.raises(ValueError, match=r"experience 0 of the stream 'test'"):
        with_source_features(transfer, PrecomputedEncoder(good), streams=["test"])
    with pytest.raises(ValueError, match="validation"):
        with_source_features(transfer, PrecomputedEncoder({"validation": good}))
    bad = good.clone()
    bad[41, 3] = float("inf")
    with pytest.raises(ValueError, match="row 41 is not finite"):
        PrecomputedEncoder(bad)
    with pytest.raises(ValueError, match="one width"):
        PrecomputedEncoder([good, torch.rand(3, 4)])
    with pytest.raises(ValueError, match="floats"):
        PrecomputedEncoder(torch.arange(6).view(3, 2))
    for wrong in (torch.rand(5), torch.rand(0, 5)):
        with pytest.raises(ValueError, match=r"\(N, dim\)"):
            PrecomputedEncoder(wrong)


def test_a_precomputed_encoder_without_its_benchmark_names_the_remedy(transfer):
    with pytest.raises(ValueError, match="with_source_features"):
        trained(transfer, PrecomputedEncoder(torch.rand(60, 5)))


def test_features_of_another_width_than_the_models_source_are_refused(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, PrecomputedEncoder(torch.rand(60, 5)))
    with pytest.raises(ValueError, match=r"\(60, 5\)|\(N, 16\)"):
        trained(stored, encoder)


def test_an_encoder_of_few_lines_has_its_features_stored(tmp_path, transfer):
    class Quadrants(Encoder):
        dim = 4

        def encode(self, x):
            return nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 2)

    stored = with_source_features(transfer, Quadrants(), tmp_path)
    strategy = trained(stored, Quadrants(), train_epochs=1)
    assert np.isfinite(strategy.round_losses["L_rs"])


# ------------------------------------------------------------------ another source


def _other(encoder):
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        other.module[1].weight[0, 0] += 0.1
    return other


def test_features_of_another_source_are_refused_before_training(tmp_path, transfer, encoder):
    stored = with_source_features(transfer, encoder, tmp_path)
    with pytest.raises(ValueError, match=r"of another network.*model\.source"):
        trained(stored, _other(encoder))
    rows = torch.rand(60, 5)
    given = with_source_features(transfer, PrecomputedEncoder(rows))
    with pytest.raises(ValueError, match="PrecomputedEncoder"):
        trained(given, PrecomputedEncoder(rows + 1))


def test_the_origin_of_features_goes_with_parts_and_joins_of_the_data(tmp_path, transfer, encoder):
    other = _other(encoder)
    one, two = (
        with_source_features(transfer, e, tmp_path).train_stream[0].dataset
        for e in (encoder, other)
    )
    plain = transfer.train_stream[0].dataset
    for data in (one, one.subset([3, 5]), one.concat(one.subset([1])), one.eval()):
        assert features_are_of(data, copy.deepcopy(encoder))
        assert not features_are_of(data, other)
    assert not features_are_of(one.concat(two), encoder)
    assert features_are_of(plain, encoder) and features_are_of(one.subset([]), encoder)


def test_a_store_under_the_home_folder_is_found(tmp_path, monkeypatch, transfer, encoder):
    monkeypatch.setenv("HOME", str(tmp_path))
    with_source_features(transfer, encoder, "~/given")
    monkeypatch.setenv("CETL_CACHE", "~/variable")
    with_source_features(transfer, encoder)
    assert list((tmp_path / "given").iterdir()) and list((tmp_path / "variable").iterdir())
    monkeypatch.setenv("CETL_CACHE", "")  # none
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "avalanche-cetl" / "features"
    np.save(tmp_path / "rows.npy", np.ones((3, 2), dtype="f4"))
    assert PrecomputedEncoder("~/rows.npy").dim == 2


# ------------------------------------------------------------------ once for each image


def _all_rows(benchmark, encoder):
    """Check that every row of every stream has the features of its own image."""
    for stream in benchmark.streams.values():
        for experience in stream:
            for mode in (experience.dataset.train(), experience.dataset.eval()):
                for row in range(0, len(mode), 7):
                    image, _, features, *_ = mode[row]
                    torch.testing.assert_close(features, encoder(image[None])[0])


def test_a_hook_that_the_source_got_since_makes_it_another_network(tmp_path, transfer, encoder):
    before = with_source_features(transfer, encoder, tmp_path, dtype="float32", progress=False)
    encoder.module[2].register_forward_hook(lambda module, inputs, output: 5 * output)
    after = with_source_features(transfer, encoder, tmp_path, dtype="float32", progress=False)
    one, other = (b.train_stream[0].dataset[0][2] for b in (before, after))
    torch.testing.assert_close(other, 5 * one)


def test_the_source_runs_once_for_a_row_that_several_streams_hold(tmp_path, digits, encoder):
    few = transfer_benchmark(digits(60), digits(30, seed=1), labels_per_class=5)
    stored = with_source_features(few, encoder, tmp_path / "few", dtype="float32", batch_size=7)
    assert Counting.images == 60 + 30
    _all_rows(stored, encoder)
    Counting.images = 0
    adaptation = adaptation_benchmark(
        digits(40, seed=2), [digits(30, seed=3), digits(20, seed=4)], [digits(12, seed=5)] * 2,
        labels_per_class=2,
    )  # fmt: skip
    stored = with_source_features(adaptation, encoder, tmp_path / "two", dtype="float32")
    assert Counting.images == 40 + 30 + 20 + 12
    _all_rows(stored, encoder)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("order", [["labelled", "train", "test"], ["train", "labelled", "test"]])
def test_the_order_of_streams_and_shards_changes_neither_count_nor_features(
    tmp_path, digits, encoder, order
):
    few = transfer_benchmark(digits(60), digits(30, seed=1), labels_per_class=5)
    turned = benchmark_of(few, [few.streams[name] for name in order])
    stored = with_source_features(turned, encoder, tmp_path, dtype="float32", batch_size=3)
    assert Counting.images == 60 + 30
    _all_rows(stored, encoder)


def test_views_that_differ_have_features_of_their_own(tmp_path, digits, encoder):
    flip = RandomHorizontalFlip(1.0)
    few = transfer_benchmark(
        digits(12), digits(6, seed=1), labels_per_class=2, train_transform=flip
    )
    stored = with_source_features(few, encoder, tmp_path, dtype="float32")
    assert Counting.images == 2 * 12 + 6
    _all_rows(stored, encoder)


def test_two_processes_run_the_source_once_for_each_row(tmp_path, two_processes):
    both = two_processes(
        f"""
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from stores import Moments, images, seen
        from avalanche_cetl import transfer_benchmark, with_source_features
        from avalanche_cetl.features import shards
        shards.SHARD_ROWS = 8
        log = Path({str(tmp_path)!r}) / f"log{{rank}}"
        x, encoder = images(), Moments(log)
        y = torch.arange(len(x)) % 3
        few = transfer_benchmark((x, y), (x[:9] / 2, y[:9]), labels_per_class=7)
        stored = with_source_features(
            few, encoder, {str(tmp_path / "features")!r}, dtype="float32", progress=False
        )
        print(seen(log))
        encoder.log = None
        for stream in stored.streams.values():
            for image, _, features, _ in stream[0].dataset:
                torch.testing.assert_close(features, encoder(image[None])[0])
        """
    )
    assert sum(map(int, both.succeed())) == 75 + 9


def test_an_experience_without_an_image_is_named(tmp_path, digits, encoder):
    two = transfer_benchmark([digits(12), digits(9)], [digits(6)] * 2)
    train = [
        two.train_stream[0],
        experience_of(two.train_stream[1], two.train_stream[1].dataset.subset([])),
    ]
    holes = benchmark_of(two, [EagerCLStream("train", train), two.test_stream])
    given = PrecomputedEncoder({"train": [torch.rand(12, 2), torch.rand(9, 2)]})
    for make in (
        lambda: with_source_features(holes, encoder, tmp_path),
        lambda: with_source_features(holes, given),
        lambda: with_mixed_images(holes),
        lambda: plot_benchmark(holes),
    ):
        with pytest.raises(ValueError, match="experience 1 of the stream 'train' is empty"):
            make()
    assert Counting.images == 0
    line = holes.summary().splitlines()[2].split()
    assert line == ["train", "1", "-", "0", "0", "0", "-"]
    whole = with_source_features(holes, encoder, tmp_path, streams=["test"])
    assert len(whole.test_stream[1].dataset[0]) == 4
