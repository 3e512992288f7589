"""The rows of the suite: how each trains T2 on a task.

Every row has as many steps on the labels as T2 alone: in each of them a mini-batch of labelled
rows, where there are any. Rows of single ingredients take one step of the labels and the ingredient
on target rows (variant ``"direct"``). CETL's stages are steps of their own, so that its rows have
more of them, but, but for the printed schedule, as many on the labels.

Single ingredients have one weight for all tasks. Some of these were varied on the development tasks
(``trials.py``); views and minimum class confusion were not. Rivals have one strength for all tasks
too, the best of five by validation accuracy on the development tasks. (Before, each chose its own
on every task, by information maximisation. For MCC that does not do: it prefers 3 or 10 to 1, where
the accuracy is lower.) AdaMatch has nothing to choose; it needs strong views of images, so it runs
where the task has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from avalanche_cetl import (
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    FitNetsHints,
    InformationMaximization,
    MinimumClassConfusion,
    ModuleEncoder,
    SoftTargets,
    ViewConsistency,
)
from benchmarks.data.digits import Pair
from benchmarks.methods import adamatch, skada
from benchmarks.methods.cetl import earlier_defaults
from benchmarks.methods.job import AdaptationBudget, AdaptationJob, Method
from benchmarks.methods.plain import cosine
from benchmarks.suite.tasks import BATCH, LEARNING_RATE, WIDTH, Data, Task, new_network

#: Takes a task, its data, a seed and a strength; returns the trained network.
Train = Callable[[Task, Data, int, float], nn.Module]


def cetl(
    task: Task, data: Data, seed: int, plugins: Sequence[Any] = (), **settings: Any
) -> nn.Module:
    """Train T2 by CETLStrategy; without a preset by version 0.2's defaults for the variant."""
    if "preset" not in settings:
        settings = earlier_defaults(settings["variant"]) | settings
    return coupled(task, data, seed, plugins, **settings)[1]


def coupled(
    task: Task, data: Data, seed: int, plugins: Sequence[Any] = (), **settings: Any
) -> tuple[CoupledModel, nn.Module]:
    """Train by CETLStrategy with some settings; return the coupled model, and T2 as given."""
    network = new_network(data, seed)
    model = CoupledModel.build(data.source, network, data.shape)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        augment=task.augment,
        train_mb_size=BATCH,
        train_epochs=task.rounds,
        evaluator=None,
        plugins=[cosine(optimizer, task.rounds), *plugins],
        **settings,
    ).train(data.benchmark().train_stream)
    return model, network


def beside_labels(plugins: Callable[[Task], list[Any]]) -> Train:
    """Return one step of the labels and of plugins on target rows, without a decoder."""
    return lambda task, data, seed, _: cetl(task, data, seed, plugins(task), variant="direct")


def _soft(task: Task) -> list[Any]:
    if task.kind == "few":
        return [SoftTargets(weight=10.0, temperature=2.0, rows="target", head="probe")]
    return [SoftTargets(weight=1.0, temperature=2.0, rows="target")]


def _views(task: Task) -> list[Any]:
    return [ViewConsistency(10.0, threshold=0.968, rampup_rounds=4, rows="unlabelled")]


def _information(task: Task) -> list[Any]:
    return [InformationMaximization(1.0, rampup_rounds=4)]


def _confusion(task: Task) -> list[Any]:
    return [MinimumClassConfusion(1.0, rampup_rounds=4)]


def _features(task: Task) -> list[Any]:
    return [FitNetsHints(target_layer="hidden", weight=1.0, rows="target")]


def _hints(task: Task, data: Data, seed: int, _: float) -> nn.Module:
    return cetl(task, data, seed, [DecoderHints(1.0)], variant="joint")


def _labels(task: Task, data: Data, seed: int, _: float) -> nn.Module:
    return cetl(task, data, seed, variant="direct")


def with_settings(**settings: Any) -> Train:
    """Return CETL with arguments of the strategy."""
    return lambda task, data, seed, _: cetl(task, data, seed, **settings)


def rival(method: Method) -> Train:
    """Return a method for two domains; the strength is its loss's weight."""

    def train(task: Task, data: Data, seed: int, strength: float) -> nn.Module:
        budget = AdaptationBudget(
            epochs=task.rounds, counts=None, width=WIDTH, batch=BATCH, learning_rate=LEARNING_RATE
        )
        assert data.other is not None and isinstance(data.source, ModuleEncoder)
        source, pair = data.source, Pair(data.other, None, data.train[0], data.test)
        return method(
            AdaptationJob(
                budget=budget,
                seed=seed,
                strength=strength,
                pair=pair,
                make_source=lambda: source,
                seen=task.augment,
            )
        )

    return train


@dataclass(frozen=True)
class Row:
    """A row.

    :ivar kinds: of the tasks that it runs on.
    :ivar strengths: to choose from; one: there is no choice.
    :ivar single: whether it is a single ingredient, which the preset is measured by.
    :ivar strong: whether it needs strong views of images.
    """

    train: Train
    kinds: tuple[str, ...] = ("few", "adaptation", "free")
    strengths: tuple[float, ...] = (0.0,)
    single: bool = False
    strong: bool = False

    def fits(self, task: Task) -> bool:
        """Return whether it runs on a task."""
        return task.kind in self.kinds and (task.strong or not self.strong)


_WITH_LABELS = ("few", "adaptation")
ROWS = {
    "T2 alone": Row(_labels, _WITH_LABELS),
    "soft targets": Row(beside_labels(_soft), single=True),
    "feature distillation": Row(beside_labels(_features), ("few",), single=True),
    "hints, joint": Row(_hints, ("few",), single=True),
    "views": Row(beside_labels(_views), single=True, kinds=("adaptation",)),
    "information maximisation": Row(
        beside_labels(_information), ("adaptation", "free"), single=True
    ),
    "minimum class confusion": Row(beside_labels(_confusion), ("adaptation", "free"), single=True),
    "MCC, SKADA": Row(rival(skada.deep("MCC")), ("adaptation",), (0.1, 0.3, 1.0, 3.0, 10.0)),
    "DANN, SKADA": Row(rival(skada.deep("DANN")), ("adaptation",), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "CDAN, SKADA": Row(rival(skada.deep("CDAN")), ("adaptation",), (0.01, 0.03, 0.1, 0.3, 1.0)),
    "AdaMatch": Row(rival(adamatch.train), ("adaptation",), strong=True),
    "CETL, preset paper": Row(with_settings(preset="paper"), _WITH_LABELS),
    # of version 0.2, in which the coupled network was the default
    "CETL, defaults": Row(with_settings(variant="gfi"), _WITH_LABELS),
    "CETL, preset best": Row(with_settings(preset="best")),
}
