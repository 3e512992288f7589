"""Estimate: is S worth listening to? Answered from labelled rows, before training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
from avalanche.models.utils import avalanche_forward
from torch import nn

from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.labels import split_rows
from avalanche_cetl.common.optimizers import optimizer_like
from avalanche_cetl.common.seeds import seeded
from avalanche_cetl.encoders.probe import linear_probe
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.data import TrainingData


class Estimate(NamedTuple):
    """How a linear probe on S's features, and T2 alone, classify labelled rows held out from both.

    Both learnt from the other labelled target rows: a copy of T2 in as many steps as training
    would make, with the same views and without S. With few labels the answer is uncertain. Printed
    it is one line.

    :ivar probe: share of the rows that the probe names right, in [0, 1].
    :ivar alone: the same of T2 trained on the other labelled rows, without S.
    :ivar rows: how many were held out.
    :ivar error: standard error of ``probe - alone`` over these rows, of paired answers; infinite
        for one row.
    """

    probe: float
    alone: float
    rows: int
    error: float

    def __str__(self) -> str:
        apart = self.probe - self.alone
        told = (
            f"of {self.rows} labelled rows held out, a linear probe on S's features names "
            f"{self.probe:.0%} right, T2 alone {self.alone:.0%}"
        )
        if abs(apart) <= 2 * self.error:
            return f"{told}: too few rows to tell them apart (standard error {self.error:.0%})"
        more = "S knows more than T2 learns alone" if apart > 0 else "T2 alone learns more"
        return f"{told}: {more} (standard error {self.error:.0%})"


def held_out_rows(labels: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows class by class; every class keeps one row at least.

    :param labels: of all rows, -1 where there is none; these rows are in neither part.
    :param share: of each class that is held out, in (0, 1), rounded, at least one of two or more.
    :param seed: of the choice.
    :return: places of rows to fit on, and of rows held out.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted, held = [], []
    for label in sorted({label for label in labels if label >= 0}):
        rows = torch.tensor([i for i, one in enumerate(labels) if one == label])
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held += rows[:count].tolist()
        fitted += rows[count:].tolist()
    return sorted(fitted), sorted(held)


def estimate(
    strategy: Any, make: Callable[..., Any], experience: Any, share: float, seed: int
) -> Estimate:
    """Compare a probe on S with T2 alone; see :meth:`CETLStrategy.estimate`.

    :param strategy: whose T2, optimiser and views they are.
    :param make: the class of the strategy that trains T2 alone.
    :param experience: see there, as the next two.
    :param share: of each class that is held out.
    :param seed: of the choice of rows, and of T2's training.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} is outside (0, 1).")
    source = strategy.model.source
    if source is None:
        raise ValueError("there is no source network, so there is nothing to compare T2 with.")
    target = split_rows(experience.dataset).target
    fitted, held = held_out_rows([int(label) for label in target.targets], share, seed)
    if not held or len({int(target.targets[i]) for i in fitted}) < 2:
        raise ValueError(
            f"experience {experience.current_experience} has {len(fitted) + len(held)} target rows "
            "with a label: at least two classes are needed, and one of them with two rows, so that "
            "one can be held out."
        )
    cut, device = len(fitted), strategy.device
    strategy.model.to(device)  # Avalanche does so in train() alone
    rows = target.subset([*fitted, *held])
    data = TrainingData(rows, strategy.model, experience, strategy.clock, True)
    features, labels = data.labelled_features(source, max(64, strategy.train_mb_size), device)
    batch = data.sample(range(cut, len(rows)), device)
    with seeded(f"estimate {seed}"):  # a new layer draws, too
        probe = linear_probe(features[:cut], labels[:cut], num_classes=int(labels.max()) + 1)
        network = _alone(strategy, make, target.subset(fitted), len(target))
    named = (probe(features[cut:]).argmax(1) == labels[cut:]).double()
    with torch.no_grad():
        logits = torch.cat(
            [
                avalanche_forward(network, x, tasks)
                for x, tasks in zip(batch.images.split(64), batch.tasks.split(64), strict=True)
            ]
        )
    right = (logits.argmax(1).cpu() == labels[cut:]).double()
    error = float((named - right).std()) / math.sqrt(len(held)) if len(held) > 1 else math.inf
    return Estimate(float(named.mean()), float(right.mean()), len(held), error)


def _alone(strategy: Any, make: Callable[..., Any], rows: Any, count: int) -> nn.Module:
    """Return a copy of T2 as it is now, trained on labelled rows alone in as many steps.

    :param rows: to train on.
    :param count: target rows of the experience, which a round passes over.
    """
    size, given = strategy.train_mb_size, strategy.optimizer
    steps = strategy.train_epochs * math.ceil(count / size)
    target = copied(strategy.model.target)
    model = CoupledModel.build(None, target, strategy.model.input_shape)
    model.decoder.requires_grad_(False)  # it has no part, and no group
    pairs = zip(strategy.model.target.parameters(), target.parameters(), strict=True)
    copies = {id(theirs): own for theirs, own in pairs}
    groups = [
        {**group, "params": [copies[id(p)] for p in group["params"] if id(p) in copies]}
        for group in given.param_groups
    ]
    alone = make(
        model=model,
        optimizer=optimizer_like(given, groups),
        criterion=copy.deepcopy(strategy._criterion),  # one that is a plugin has state
        variant="direct",
        preset="paper",
        augment=strategy.augment,
        train_mb_size=size,
        train_epochs=math.ceil(steps / math.ceil(len(rows) / size)),
        device=strategy.device,
        evaluator=None,
    )
    stream = with_classes_timeline(benchmark_from_datasets(train=[rows])).train_stream
    alone.train(stream)
    return model.eval()
