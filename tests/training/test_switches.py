import copy

import pytest
import torch
from torch import nn

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    GFISettings,
    ModuleEncoder,
    transfer_benchmark,
)

SHAPE = (1, 8, 8)


def coupled(dtype=torch.float32):
    torch.manual_seed(0)
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    source = ModuleEncoder(source.to(dtype), input_shape=SHAPE)
    return CoupledModel.build(source, CICNN(3, SHAPE, width=0.05), SHAPE).to(dtype)


def trained(benchmark, model=None, workers=0, plugins=(), **arguments):
    model = coupled() if model is None else model
    settings = {
        "gfi": GFISettings(samples=8),
        "dwa_lambda": 0.1,
        "warmup_epochs": 1,
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 16,
        "evaluator": None,
        **arguments,
    }
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    strategy = CETLStrategy(model=model, optimizer=optimizer, plugins=list(plugins), **settings)
    torch.manual_seed(3)
    strategy.train(benchmark.train_stream, eval_streams=[], num_workers=workers)
    return strategy


def distance(one, other):
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def moved(strategy):
    pairs = zip(strategy.model.parameters(), coupled().parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture
def benchmark(digits):
    return transfer_benchmark(digits(44), digits(20, seed=1))


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


def test_views_have_the_layout_too(digits):
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


@pytest.mark.parametrize("variant", ["e", "gfi"])
def test_two_batches_to_a_step_are_one_of_twice_the_size(benchmark, variant):
    benchmark = copy.copy(benchmark)
    steps = []

    class Count(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            steps.append("step")

        def before_update(self, strategy, *args, **kwargs):
            steps.append("update")

    # 44 rows: five and a half mini-batches of 8, nearly three of 16.
    large = trained(benchmark, variant=variant, train_mb_size=16, plugins=[Count()])
    wanted, steps = list(steps), []
    small = trained(benchmark, variant=variant, accumulate=2, plugins=[Count()])
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


def test_compiled_passes_train_the_same_weights_under_the_same_names(benchmark):
    plain = trained(benchmark, plugins=[DecoderHints(0.3)])
    # This backend captures and differentiates the graphs as inductor's does, and compiles none.
    compiled = trained(benchmark, compile="aot_eager", plugins=[DecoderHints(0.3)])
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    assert distance(plain, compiled) < 1e-5
    compiled.eval(benchmark.test_stream)


def test_workers_give_the_same_numbers(benchmark):
    assert distance(trained(benchmark), trained(benchmark, workers=1)) == 0


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
def test_switches_out_of_range_are_refused(benchmark, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        trained(benchmark, **arguments)
