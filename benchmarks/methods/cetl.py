"""CETL in all the forms that the tables have, and DRCN, which is CETL without a source network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from avalanche_cetl import (
    CETLPlugin,
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    GFISettings,
    SoftTargets,
    ViewConsistency,
)
from avalanche_cetl.training import VARIANTS, Variant, parse_preset
from benchmarks.methods.job import AdaptationJob, Job, Method, TransferJob
from benchmarks.methods.plain import cosine

#: The algorithm as printed, where a row says nothing else, with a lambda of ours.
PRINTED: dict[str, Any] = {"preset": "paper", "dwa_lambda": 1e-3}
#: Makes soft targets of a job's strength for ``rows`` of a batch.
Softened = Callable[[TransferJob, str], SoftTargets]
#: Strengths of DWA, its lambda, that rows choose from; the middle one where they do not.
PENALTIES = (1e-3, 1e-2, 1e-1)


def coupled(
    job: Job,
    plugins: Sequence[Any] = (),
    with_source: bool = True,
    benchmark: Any = None,
    **settings: Any,
) -> nn.Module:
    """Train T2 by CETL.

    :param with_source: without S, T2's code is decoded back to the image itself.
    :param benchmark: what it trains on; None: the job's.
    :param settings: of the strategy, where they differ from the paper's and the budget's.
    """
    b = job.budget
    source = job.source if with_source else None  # its training has a seed of its own
    network = job.network()
    model = CoupledModel.build(source, network, job.shape)
    optimizer = torch.optim.Adam(model.parameters(), b.learning_rate)
    chosen: dict[str, Any] = {
        "gfi": GFISettings(samples=b.gfi_samples, seed=job.seed),
        "warmup_epochs": b.warmup_epochs,
        **({} if "preset" in settings else PRINTED),
        **settings,
    }
    stream = (benchmark or job.benchmark()).train_stream
    CETLStrategy(
        model=model,
        optimizer=optimizer,
        augment=job.augment,
        train_mb_size=b.batch,
        train_epochs=b.epochs,
        evaluator=None,
        plugins=[cosine(optimizer, b.epochs), *plugins],
        **job.where.switches(),
        **chosen,
    ).train(stream, pin_memory=False)  # the images lie on the device
    return network


def earlier_defaults(variant: str | Variant = "gfi") -> dict[str, Any]:
    """Return what CETLStrategy had without a preset in version 0.2, "CETL, defaults" in tables.

    The paper's stages with a goal that is fixed, balanced steps and a slow stage 2.
    """
    merged = (variant if isinstance(variant, Variant) else VARIANTS[variant]).merged
    return {
        "preset": "paper", "variant": variant, "dwa_lambda": 1e-3, "gfi": GFISettings(),
        "fixed_goal": not merged, "stage_epochs": "balanced", "lr_factors": (1.0, 0.1),
    }  # fmt: skip


def earlier(name: str | None) -> Any:
    """Return a preset of version 0.2; None: its defaults."""
    if name is None:
        own = {n: v for n, v in earlier_defaults().items() if n not in ("preset", "variant")}
        return replace(parse_preset("paper"), **own)
    if name != "best":
        return parse_preset(name)
    best = parse_preset("best")
    probe, source, *others = best.plugins
    source = source._replace(
        make=lambda: SoftTargets(weight=0.3, temperature=2.0, rows="target", anneal=True)
    )
    probe = probe._replace(
        make=lambda: SoftTargets(weight=10.0, temperature=2.0, rows="target", head="probe"),
        weight=replace(probe.weight, full=10.0),  # type: ignore[type-var]
    )
    return replace(best, plugins=(probe, source, *others))


def gfi_of(preset: str, job: Job) -> GFISettings:
    """Return a preset's settings of GFI, with the job's samples and seed."""
    return replace(parse_preset(preset, "gfi").gfi, samples=job.budget.gfi_samples, seed=job.seed)


# ------------------------------------------------------------------ as printed, and near it


def printed(variant: str) -> Method:
    """Return CETL as printed, with a lambda of 1e-3."""
    return lambda job: coupled(job, variant=variant)


def penalised(variant: str) -> Method:
    """Return CETL as printed; the strength is DWA's lambda."""
    return lambda job: coupled(job, variant=variant, dwa_lambda=job.strength)


def preset(variant: str, name: str) -> Method:
    """Return a variant with the settings of a preset, its warm-up too."""

    def train(job: Job) -> nn.Module:
        own = gfi_of(name, job)
        return coupled(job, variant=variant, preset=name, gfi=own, warmup_epochs=None)

    return train


def as_it_comes(name: str | None) -> Method:
    """Return CETL with a preset of version 0.2 and its own variant, or with its defaults (None).

    Its probe has the C that is chosen now, where version 0.2 had 1e-3.
    """
    if name is None:
        return lambda job: coupled(job, **earlier_defaults(), warmup_epochs=None)
    return lambda job: coupled(job, **_direct(name))


def now(job: Job) -> nn.Module:
    """Train as ``CETLStrategy(...)`` without a setting does."""
    return coupled(job, preset="best", gfi=None, warmup_epochs=None)


def now_source_free(job: AdaptationJob) -> nn.Module:
    """Train as ``CETLStrategy(...)`` does today on S and the target's images alone."""
    return coupled(
        job, benchmark=job.source_free_benchmark(), preset="best", gfi=None, warmup_epochs=None
    )


def source_free(job: AdaptationJob) -> nn.Module:
    """Train as ``preset="best"`` of version 0.2 on S and the target's images alone."""
    return coupled(job, benchmark=job.source_free_benchmark(), **_direct("best"))


def _direct(name: str) -> dict[str, Any]:
    plugins = earlier(name).plugins_beside([], None)
    own = {"gfi": None, "warmup_epochs": None}
    return {"plugins": plugins, "preset": "paper", "variant": "direct", **own}


# ------------------------------------------------------------------ hints


def hints(job: Job) -> nn.Module:
    """Train with a fixed goal, T1's hidden layers, and a slower stage 2: the strength."""
    return _hinted(job, [DecoderHints(1.0)], job.strength)


def hints_and_soft_targets(soft: Softened) -> Method:
    """Return the same with soft targets of the labelled rows; the strength is theirs."""
    return lambda job: _hinted(job, [DecoderHints(1.0), soft(job, "labelled")], 0.1)


def _hinted(job: Job, plugins: Sequence[Any], stage_2: float) -> nn.Module:
    return coupled(
        job,
        plugins,
        variant="gfi",
        dwa_lambda=PENALTIES[1],
        fixed_goal=True,
        lr_factors=(1.0, stage_2),
    )


def hints_on_unlabelled(variant: str, soft: Softened | None = None) -> Method:
    """Return CETL with a fixed goal and T1's hidden layers, in stage 2 on all images.

    :param soft: soft targets there too; the strength is theirs, else DWA's lambda.
    """

    def train(job: TransferJob) -> nn.Module:
        return coupled(
            job,
            [DecoderHints(1.0), *([soft(job, "target")] if soft else [])],
            variant=variant,
            dwa_lambda=PENALTIES[1] if soft else job.strength,
            fixed_goal=True,
            stage_epochs=(1, 1, 2),
        )

    return train


def best_on_mixed(variant: str, soft: Softened | None = None) -> Method:
    """Return ``preset="best"`` with two passes over the labelled images in a round.

    The warm-up is the budget's, not the preset's 10 epochs: at ``cpu`` 2 over five times as many
    images, which makes as many steps.

    :param soft: soft targets in stage 2 in place of the preset's; the strength is theirs.
    """

    def train(job: TransferJob) -> nn.Module:
        return coupled(
            job,
            [soft(job, "target")] if soft else [],
            variant=variant,
            preset="best",
            gfi=gfi_of("best", job),
            stage_epochs=(1, 1, 2),
        )

    return train


# ------------------------------------------------------------------ without target labels


def adapted(
    variant: str,
    plugins: Callable[[float], list[CETLPlugin]] | None = None,
    with_source: bool = True,
) -> Method:
    """Return CETL with a fixed goal and noise on T2's input; without S it is DRCN.

    The strength is that of plugins, or without them the factor on stage 2's learning rate.
    """

    def train(job: Job) -> nn.Module:
        b = job.budget
        return coupled(
            job,
            plugins(job.strength) if plugins else [],
            with_source,
            variant=variant,
            lr_factors=(1.0, 1.0 if plugins else job.strength),
            dwa_lambda=b.dwa_lambda,
            input_noise=b.input_noise,
            fixed_goal=with_source,
        )

    return train


def decoder_hints(strength: float) -> list[CETLPlugin]:
    """Make plugins that match T1's hidden layers too."""
    return [DecoderHints(strength)]


def hints_and_views(strength: float) -> list[CETLPlugin]:
    """Make the same, and one that matches T2's classes of two views of a target image."""
    return [DecoderHints(1.0), ViewConsistency(strength)]


def hints_and_late_views(strength: float) -> list[CETLPlugin]:
    """Make the same, trusting the slow T2 later and less: a ramp, and French et al.'s threshold."""
    return [DecoderHints(1.0), ViewConsistency(strength, threshold=0.968, rampup_rounds=6)]
