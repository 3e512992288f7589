"""Distillation without a decoder: soft targets, features, hints, of a probe on S or a teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from avalanche_cetl import Encoder, FitNetsHints, ModuleEncoder, SoftTargets, linear_probe
from benchmarks.methods.cetl import Softened, coupled
from benchmarks.methods.job import Method, TransferJob
from benchmarks.methods.plain import naive

PROBE_STRENGTH = 1e-3


# ------------------------------------------------------------------ who is asked


def of_probe(job: TransferJob, rows: str) -> SoftTargets:
    """Make soft targets, at temperature 2, of a probe on S fitted on the labelled images."""
    known = job.train[1] >= 0
    head = linear_probe(job.features[known], job.train[1][known], PROBE_STRENGTH)
    return SoftTargets(
        weight=job.strength, temperature=2.0, rows=rows, source=job.source, head=head
    )


def of_teacher(job: TransferJob, rows: str) -> SoftTargets:
    """Make soft targets, at temperature 4, of the teacher's own logits."""
    head = _Classifier(job.encoder)
    return SoftTargets(
        weight=job.strength, temperature=4.0, rows=rows, source=job.source, head=head
    )


class _Classifier(nn.Module):
    """The teacher's logits from its stored features."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits."""
        return self.encoder.classify(features)


class Live(nn.Module):
    """The teacher on standardised images."""

    def __init__(self, job: TransferJob):
        super().__init__()
        assert isinstance(job.encoder, ModuleEncoder)
        self.network = job.encoder.module.to(job.where.device)
        self.pixels = job.pixels

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        return self.network(self.pixels.restore(x))


# ------------------------------------------------------------------ methods


def the_teacher(job: TransferJob) -> nn.Module:
    """Return the teacher itself."""
    return Live(job)


def soft_targets(soft: Softened) -> Method:
    """Return Hinton, Vinyals and Dean 2015, beside the labels; who is asked sees clean images."""
    return lambda job: naive(job, job.network(), plugins=[soft(job, "labelled")])


def feature_distillation(job: TransferJob) -> nn.Module:
    """Train T2's code towards S's features through a learned linear layer, beside the labels."""
    hints = FitNetsHints(
        target_layer="hidden", weight=job.strength, rows="labelled", source=job.source
    )
    return naive(job, job.network(), plugins=[hints])


def fitnets(job: TransferJob) -> nn.Module:
    """Train the last maps towards the teacher's last stage's (Romero et al. 2015)."""
    live = ModuleEncoder(Live(job), input_shape=job.shape)
    hints = FitNetsHints(
        target_layer="features.11",
        source_layer="network.blocks",
        weight=job.strength,
        rows="labelled",
        source=live,
    )
    return naive(job, job.network(), plugins=[hints])


def feature_distillation_on_all(job: TransferJob) -> nn.Module:
    """Train T2's code towards S's features of all images, unlabelled and mixed ones too."""
    return _on_all(job, FitNetsHints(target_layer="hidden", weight=job.strength, rows="target"))


def soft_targets_on_all(soft: Softened) -> Method:
    """Return soft targets on all images, unlabelled and mixed ones too."""
    return lambda job: _on_all(job, soft(job, "target"))


def _on_all(job: TransferJob, plugin: Any) -> nn.Module:
    """Train by a distillation loss on all images, beside the labels, in one step."""
    return coupled(job, [plugin], variant="joint", loss_weights=(0, 1, 0), warmup_epochs=0)
