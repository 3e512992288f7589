import pytest
import torch
from engine_runs import distance, trained

from avalanche_cetl import CICNN, CETLPlugin, CoupledModel, DecoderHints, transfer_benchmark


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
