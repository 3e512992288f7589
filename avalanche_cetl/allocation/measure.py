"""Measure a network's Fisher information and relative Fisher information, and gate the one by both.

The one place where a sample becomes Fisher values, relative Fisher values and an importance, for
CETL's rounds and for :class:`~avalanche_cetl.allocation.penalty.WeightPenalty` alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.fisher import fisher_information
from avalanche_cetl.information.generalized import (
    generalized_fisher,
    normalize_importance,
    shared_weights,
)
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.kronecker import kronecker_basis, kronecker_fisher
from avalanche_cetl.information.likelihood import Loss, select
from avalanche_cetl.information.relative import fisher_and_relative

Weights = dict[str, Tensor]
_Found = TypeVar("_Found")


class Task(NamedTuple):
    """A task as a measurement reads it: a loss per sample, and its targets for all samples."""

    loss: Loss
    targets: Any


class Measurement:
    """The samples and weights of a measurement; several processes share the samples out.

    :param network: called as ``network(*inputs)``.
    :param inputs: ``(N, ...)`` each, the same in all processes.
    :param params: the weights, by their names in ``network``.
    :param settings: how relative Fisher information is estimated.
    :param processes: that share the samples.
    :ivar basis: in which all is measured; None: weight by weight.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: tuple[Tensor, ...],
        params: Mapping[str, Tensor],
        settings: GFISettings,
        processes: Processes,
        basis: KroneckerBasis | None = None,
    ):
        self.network, self.params, self.settings, self.basis = network, params, settings, basis
        self._own, self._group = processes.share_of_rows(len(inputs[0]))
        self._inputs = tuple(part[self._own] for part in inputs)

    def choose_basis(self, task: Task) -> None:
        """Take the Kronecker basis of a task as ``basis``, where the settings want one."""
        if self.settings.basis == "diagonal":
            return
        self.basis = self._of(kronecker_basis, task, rank=self.settings.rank)

    def fisher(self, task: Task) -> Weights:
        """Return the Fisher information of one task, the mean over all samples.

        Where the settings want a basis and there is none yet, it is the task's own.
        """
        if self.basis is None and self.settings.basis == "kronecker":
            found, self.basis = self._of(kronecker_fisher, task, rank=self.settings.rank)
            return found
        return self._of(fisher_information, task, basis=self.basis)

    def _of(self, measure: Callable[..., _Found], task: Task, **options: Any) -> _Found:
        """Return what is measured of one task, on this process's samples."""
        return measure(
            self.network,
            self._inputs,
            task.loss,
            self.params,
            targets=select(task.targets, self._own),
            process_group=self._group,
            **options,
        )

    def relative(self, first: Task, second: Task) -> tuple[Weights, Weights]:
        """Return the Fisher information of the first task, and the relative one of both (eq. 9)."""
        return fisher_and_relative(
            self.network,
            self._inputs,
            (first.loss, second.loss),
            self.params,
            targets=(select(first.targets, self._own), select(second.targets, self._own)),
            estimator=self.settings.estimator,
            process_group=self._group,
            basis=self.basis,
        )


def gate(
    fisher: Weights,
    relative: Weights | None,
    settings: GFISettings,
    generator: torch.Generator,
    basis: KroneckerBasis | None = None,
) -> tuple[Weights, dict[str, float]]:
    """Return Generalized Fisher Information (eq. 10), rescaled as the settings want.

    :param fisher: Fisher information of every weight, >= 0.
    :param relative: of every weight in ``fisher``; None: no gate, plain Fisher information.
    :param settings: of the gate and of the rescaling.
    :param generator: of the gate's draws.
    :param basis: in which both were measured.
    :return: the importance of every weight, >= 0, and per parameter the share in [0, 1] of its
        weights with RF >= u; no shares without a gate.
    """
    shared: dict[str, float] = {}
    if relative is not None:
        relative = {name: relative[name] for name in fisher}
        fisher = generalized_fisher(
            fisher,
            relative,
            threshold=settings.threshold,
            probability=settings.probability,
            generator=generator,
        )
        masks = shared_weights(relative, settings.threshold)
        shared = {name: float(mask.float().mean()) for name, mask in masks.items()}
    return normalize_importance(fisher, basis) if settings.normalize else fisher, shared
