import copy

import pytest
import torch
from coupled_runs import small_coupled, strategy

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CoupledModel,
    DecoderHints,
    GFISettings,
    transfer_benchmark,
)
from avalanche_cetl.training.engine import WHOLE, Engine


def trained(benchmark, model=None, workers=0, **arguments):
    model = small_coupled() if model is None else model
    settings = {"dwa_lambda": 0.1, "train_mb_size": 8, "train_epochs": 2, "eval_mb_size": 16}
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    run = strategy(model, optimizer=optimizer, **settings | arguments)
    torch.manual_seed(3)
    run.train(benchmark.train_stream, eval_streams=[], num_workers=workers)
    return run


def distance(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def moved(run):
    pairs = zip(run.model.parameters(), small_coupled().parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("variant", ["gfi", "e", "joint"])
def test_bfloat16_is_near_and_keeps_weights_and_importances_in_float32(benchmark, variant):
    plain = trained(benchmark, variant=variant, plugins=[DecoderHints(0.3)])
    seen = []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            layer = strategy.model.target.module.features[0]
            self.hook = layer.register_forward_hook(lambda m, i, out: seen.append(out.dtype))

        def after_stage(self, strategy, *args, **kwargs):
            self.hook.remove()

    half = trained(
        benchmark, variant=variant, precision="bfloat16", plugins=[DecoderHints(0.3), Watch()]
    )
    assert set(seen) <= {torch.bfloat16, torch.float32} and torch.bfloat16 in seen
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    for one in half.importance.values():
        assert {value.dtype for value in one.values.values()} == {torch.float32}
    for name, value in plain.round_losses.items():
        assert half.round_losses[name] == pytest.approx(value, rel=0.05, abs=0.02), name
    half.eval(benchmark.test_stream)
    # The gate of GFI can go the other way for a weight at the threshold.
    assert 0 < distance(plain, half) < 0.25 * moved(plain)


def test_penalties_in_a_basis_stay_in_float32_under_bfloat16(benchmark):
    settings = {"gfi": GFISettings(samples=8, basis="kronecker", rank=4), "dwa_lambda": 0.01}
    seen = []

    class Watch(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            assert torch.is_autocast_enabled("cpu")
            found = [self.penalty(strategy)]
            with torch.autocast("cpu", enabled=False):
                found.append(self.penalty(strategy))
            seen.append(found)

        def penalty(self, strategy):
            return strategy.allocation.penalty("GFI1", strategy.model)

    half = trained(benchmark, precision="bfloat16", plugins=[Watch()], **settings)
    pairs = [(one, other) for one, other in seen if one is not None]
    assert all(one.dtype == torch.float32 and torch.equal(one, other) for one, other in pairs)
    assert max(float(one.detach()) for one, _ in pairs) > 0
    for one in half.importance.values():
        sides = [side for layer in one.basis.values() for side in (layer.left, layer.right)]
        assert {tensor.dtype for tensor in [*one.values.values(), *sides]} == {torch.float32}
    plain = trained(benchmark, **settings)
    for name, value in plain.round_losses.items():
        assert half.round_losses[name] == pytest.approx(value, rel=0.05, abs=0.02), name


@pytest.mark.parametrize(
    ("variant", "basis"), [("e", "diagonal"), ("gfi", "diagonal"), ("gfi", "kronecker")]
)
def test_two_batches_to_a_step_are_one_of_twice_the_size(benchmark, variant, basis):
    arguments = {"variant": variant, "gfi": GFISettings(samples=8, basis=basis)}
    arguments["dwa_lambda"] = 0.1 if basis == "diagonal" else 0.01
    benchmark = copy.copy(benchmark)
    steps = []

    class Count(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            steps.append("step")

        def before_update(self, strategy, *args, **kwargs):
            steps.append("update")

    # 44 rows: five and a half mini-batches of 8, nearly three of 16.
    large = trained(benchmark, train_mb_size=16, plugins=[Count()], **arguments)
    wanted, steps = list(steps), []
    small = trained(benchmark, accumulate=2, plugins=[Count()], **arguments)
    assert steps == wanted
    assert distance(large, small) < 2e-6
    for name in ("L_rs", "L_rt", "L_c"):
        assert small.round_losses[name] == pytest.approx(large.round_losses[name], abs=1e-5)


def test_accumulating_counts_a_penalty_once(benchmark):
    class Penalty(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            weights = strategy.model.target_parameters().values()
            strategy.loss += 5 * sum(w.square().sum() for w in weights)

    large = trained(benchmark, variant="e", train_mb_size=16, plugins=[Penalty()])
    small = trained(benchmark, variant="e", accumulate=2, plugins=[Penalty()])
    assert distance(large, small) < 2e-6


def test_workers_of_loaders_give_the_same_numbers(benchmark):
    one, other = (trained(benchmark, train_epochs=1, workers=count) for count in (0, 1))
    assert distance(one, other) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("arguments", [{}, {"channels_last": True}, {"precision": "bfloat16"}])
def test_cuda_gives_what_the_cpu_gives(benchmark, arguments):
    plain, cuda = trained(benchmark, **arguments), trained(benchmark, device="cuda", **arguments)
    for name, value in plain.round_losses.items():
        assert cuda.round_losses[name] == pytest.approx(value, rel=0.05, abs=0.02), name


@pytest.mark.parametrize(
    "arguments",
    [
        {"precision": "float16"},
        {"channels_last": 1},
        {"accumulate": 0},
        {"accumulate": True},
        {"accumulate": 2, "alternate": "iteration"},
        {"accumulate": 2, "variant": "joint"},
        {"compile": "nothing"},
        {"compile": 3},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(benchmark, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        trained(benchmark, **arguments)


def engine(accumulate):
    return Engine("float32", False, accumulate, False)


def loader(rows):
    """A loader of mini-batches of so many rows."""
    return [[torch.zeros(count)] for count in rows]


@pytest.mark.parametrize("together", [2, 3, 7])
def test_weights_of_micro_batches_sum_to_one_over_a_step_and_count_their_rows(together):
    rows = [8, 8, 4, 8, 1]
    found = list(engine(together).batches(loader(rows)))
    assert [batch.rows for batch, _ in found] == rows
    for start in range(0, len(rows), together):
        step = found[start : start + together]
        total = sum(batch.rows for batch, _ in step)
        assert [place.weight for _, place in step] == [batch.rows / total for batch, _ in step]
        assert sum(place.weight for _, place in step) == pytest.approx(1, abs=1e-12)


def test_batches_that_are_left_at_the_end_make_a_step_of_their_own():
    found = [place for _, place in engine(2).batches(loader([2] * 5))]
    assert [place.first for place in found] == [True, False, True, False, True]
    assert [place.last for place in found] == [False, True, False, True, True]


def test_a_batch_alone_is_a_whole_step():
    assert [place for _, place in engine(1).batches(loader([3, 5]))] == [WHOLE, WHOLE]
    assert WHOLE == (True, True, 1.0)


def test_a_short_loader_starts_again_until_the_steps_are_made():
    assert [len(batch) for batch in engine(1).cycle(loader([3, 5]), 5)] == [3, 5, 3, 5, 3]
    assert list(engine(1).cycle(loader([3]), 0)) == []


def test_channels_last_changes_the_layout_and_nothing_else(benchmark):
    plain = trained(benchmark)
    seen = []

    class Watch(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            images = strategy.model.target.module.features[0].weight
            seen.append(images.is_contiguous(memory_format=torch.channels_last))

    last = trained(benchmark, channels_last=True, plugins=[Watch()])
    assert all(seen) and seen
    assert distance(plain, last) < 1e-5
    for name in plain.round_losses:
        assert last.round_losses[name] == pytest.approx(plain.round_losses[name], abs=1e-5)


def test_views_have_the_layout_of_the_images(digits):
    x, y = digits(32)
    colours = transfer_benchmark((x.expand(-1, 3, -1, -1), y), (x.expand(-1, 3, -1, -1), y))
    model = CoupledModel.build(None, CICNN(3, (3, 8, 8), width=0.05), (3, 8, 8))
    seen = []

    def note(module, inputs, _output):
        if module.training:
            seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    model.target.module.features[0].register_forward_hook(note)
    trained(
        colours, model, variant="e", channels_last=True, input_noise=0.1, train_epochs=1,
        augment=lambda images: images.flip(3).contiguous(memory_format=torch.contiguous_format),
    )  # fmt: skip
    assert seen and all(seen)


def test_compiled_passes_train_the_same_weights_under_the_same_names(benchmark):
    plain = trained(benchmark, plugins=[DecoderHints(0.3)], train_epochs=1)
    # This backend captures and differentiates the graphs as inductor's does, and compiles none.
    compiled = trained(benchmark, compile="aot_eager", plugins=[DecoderHints(0.3)], train_epochs=1)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert distance(plain, compiled) < 1e-5
    compiled.eval(benchmark.test_stream)
