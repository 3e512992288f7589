"""The runs whose checkpoints of earlier releases lie in ``stored/``, and must load for good.

A release adds its own: ``python tests/checkpoints/stored_runs.py 0.3`` writes them into
``stored/0.3``; files that are there are never written again.
"""

import sys
from pathlib import Path

import torch
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from avalanche.training.supervised import Naive

from avalanche_cetl import (
    CICNN,
    CETLStrategy,
    CheckpointPlugin,
    CoupledModel,
    GFIPlugin,
    GFISettings,
    InformationMaximization,
    ModuleEncoder,
    SoftTargets,
    ViewConsistency,
    adaptation_benchmark,
    load_checkpoint,
    save_checkpoint,
    transfer_benchmark,
)

STORED = Path(__file__).parent / "stored"
SHAPE = (1, 8, 8)
IMAGES = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 4


class Interrupted(Exception):
    """Ends a run after its first round."""


class Interruption(CheckpointPlugin):
    """A checkpoint after the first round, and the end."""

    def after_round(self, strategy, *args, **kwargs):
        super().after_round(strategy)
        raise Interrupted


#: What version 0.2 had without a preset.
DEFAULTS_OF_0_2 = {
    "preset": "paper", "dwa_lambda": 1e-3, "gfi": GFISettings(), "stage_epochs": "balanced",
    "lr_factors": (1.0, 0.1), "fixed_goal": True,
}  # fmt: skip


def _coupled(plugins=(), **arguments):
    if "preset" not in arguments:
        arguments = DEFAULTS_OF_0_2 | arguments
    torch.manual_seed(1)
    source = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    target = CICNN(4, SHAPE, width=0.03)
    model = CoupledModel.build(ModuleEncoder(source, input_shape=SHAPE), target, SHAPE)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    schedule = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    return CETLStrategy(
        model=model,
        optimizer=optimizer,
        train_mb_size=10,
        train_epochs=2,
        plugins=[*plugins, schedule],
        evaluator=EvaluationPlugin(loggers=[]),
        **arguments,
    )


def _stock(*plugins):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        plugins=list(plugins),
        train_mb_size=10,
        evaluator=EvaluationPlugin(loggers=[]),
    )


def _transfer():
    return transfer_benchmark((IMAGES, LABELS), (IMAGES, LABELS), labels_per_class=3)


def _adaptation():
    return adaptation_benchmark((1 - IMAGES, LABELS), (IMAGES, LABELS), (IMAGES, LABELS))


def _two_tasks():
    return transfer_benchmark([(IMAGES, LABELS), (1 - IMAGES, LABELS)], [(IMAGES, LABELS)] * 2)


#: By the name of the file: the strategy, anew, and its benchmark. Those of a CETLStrategy are
#: interrupted within an experience, the others saved between two.
RUNS = {
    "cetl_gfi": (
        lambda: _coupled(
            variant="gfi", gfi=GFISettings(samples=8), dwa_lambda=0.1, lr_factors=(0.5, 0.2)
        ),
        _transfer,
    ),
    "cetl_kronecker": (
        lambda: _coupled(
            variant="gfi", gfi=GFISettings(samples=8, basis="kronecker", rank=4, threshold=0.3)
        ),
        _transfer,
    ),
    "cetl_best": (lambda: _coupled(preset="best"), _transfer),
    "cetl_best_adaptation": (lambda: _coupled(preset="best"), _adaptation),
    "cetl_plugins": (
        lambda: _coupled(
            [
                SoftTargets(weight=0.5, temperature=2.0, rows="target"),
                InformationMaximization(0.5, prior=[0.4, 0.2, 0.2, 0.2]),
                ViewConsistency(1.0, rampup_rounds=2),
            ],
            variant="e",
            stage_epochs=(1, 1, 2),
        ),
        _transfer,
    ),
    "gfi_diagonal": (
        lambda: _stock(GFIPlugin(2.0, samples=16, threshold=0.4, basis="diagonal")),
        _two_tasks,
    ),
    "gfi_online": (
        lambda: _stock(GFIPlugin(2.0, "online", 0.5, samples=16, basis="diagonal")),
        _two_tasks,
    ),
    "gfi_kronecker": (
        lambda: _stock(
            GFIPlugin(
                2.0,
                basis="kronecker",
                fisher="sampled",
                normalize=True,
                penalty="proximal",
                rank=8,
                samples=16,
            ),
            ReplayPlugin(8),
        ),
        _two_tasks,
    ),
}


def write(folder):
    """Write the checkpoints of this release."""
    for name, (make, benchmark) in RUNS.items():
        file = folder / f"{name}.safetensors"
        if file.exists():
            continue
        strategy, stream = make(), benchmark().train_stream
        if not isinstance(strategy, CETLStrategy):
            strategy.train(stream[0])
            save_checkpoint(strategy, file)
            continue
        plugin = Interruption(folder / name)
        strategy.plugins.append(plugin)
        try:
            strategy.train(stream)
        except Interrupted:
            (saved,) = (folder / name).iterdir()
            saved.rename(file)
            (folder / name).rmdir()


def resumed(version, name):
    """Return a strategy with a stored checkpoint, and how far that had come."""
    make, _ = RUNS[name]
    strategy = make()
    return strategy, load_checkpoint(strategy, STORED / version / f"{name}.safetensors")


if __name__ == "__main__":
    write(STORED / sys.argv[1])
