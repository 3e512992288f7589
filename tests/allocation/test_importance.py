import torch
from counting import Counting, images
from torch import nn

from avalanche_cetl import (
    CETLStrategy,
    CoupledModel,
    GFISettings,
    ModuleEncoder,
    transfer_benchmark,
)


def test_coupling_leaves_no_trace_in_the_target():
    model = Counting()
    source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), input_shape=(1, 8, 8))
    CoupledModel.build(source, model, (1, 8, 8))
    assert model.passes == 0 and model.largest == 0 and not model.average.any()


def test_measuring_leaves_no_trace_in_cetls_target():
    passes = []
    for variant in ("e", "gfi"):
        torch.manual_seed(0)
        model = Counting()
        source = ModuleEncoder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), input_shape=(1, 8, 8))
        coupled = CoupledModel.build(source, model, (1, 8, 8))
        CETLStrategy(
            model=coupled, optimizer=torch.optim.Adam(coupled.parameters(), 1e-3), variant=variant,
            train_mb_size=6, gfi=GFISettings(samples=8), evaluator=None,
        ).train(transfer_benchmark(images(), images()).train_stream)  # fmt: skip
        passes.append(model.passes)
    assert passes[0] == passes[1]
