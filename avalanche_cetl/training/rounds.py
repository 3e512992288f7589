"""One round: the stages of a variant, by epochs or by iterations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.training.utils import trigger_plugins

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.labels import labelled_rows
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.engine import WHOLE, MicroBatch
from avalanche_cetl.training.host import Host
from avalanche_cetl.training.stages import Callbacks, TrainingStage
from avalanche_cetl.training.step import take_step
from avalanche_cetl.training.variants import WARMUP

#: From so many times the images' root mean square on, T1's pictures are taken to run away.
LARGE_PICTURES = 10.0


class Round:
    """One round of a strategy: every stage of its variant, and the measurements between them.

    :param host: the strategy.
    :param kwargs: of Avalanche's callbacks.
    :ivar stages: those of the variant that run: some fall away without S.
    :ivar alternates: whether they take turns from step to step.
    """

    def __init__(self, host: Host, **kwargs: Any):
        self.host, self.kwargs = host, kwargs
        variant, has_source = host.recipe.variant, host.networks.has_source
        self.alternates = host.recipe.alternate == "iteration" and not variant.merged
        self.stages = [stage for stage in variant.stages if has_source or not stage.needs_source]
        if self.alternates and not host.data.counts[1]:
            self.stages = [stage for stage in self.stages if stage.reads != "labelled"]

    def check_trainable(self) -> None:
        """Raise ValueError where a stage trains T2 alone, and all of T2 is frozen."""
        model = self.host.model
        if any(p.requires_grad for p in model.target_parameters().values()):
            return
        for stage in self.stages:
            decoder = stage.kind is not Stage.CLASSIFY and any(
                p.requires_grad for p in stage.parameters(model)
            )
            if stage.callbacks is Callbacks.ALL and not decoder:
                raise ValueError(
                    "no weight of the target network learns: all have requires_grad=False, and "
                    f"{stage.label!r} trains no other. Unfreeze it, or a part such as its head: "
                    "model.target.requires_grad_(True)."
                )

    def run(self) -> None:
        """Run the round; a stop that is asked for ends the stage that runs, and the others."""
        if self.alternates:
            self._by_iterations()
            return
        for stage in self.stages:
            self.run_stage(stage, self._epochs(stage))
            self._measure(stage.measures)

    @property
    def iterations(self) -> int:
        """Return how many of Avalanche's training iterations the round has."""
        lengths = {"target": len(self.host.data.loader), "labelled": len(self.host.dataloader)}
        longer = max(lengths.values())
        ordinary = [stage for stage in self.stages if stage.callbacks is Callbacks.ALL]
        if self.alternates:
            return longer * len(ordinary)
        return sum(
            self._epochs(stage) * (longer if stage.beside else lengths[stage.reads])
            for stage in ordinary
        )

    def warm_up(self, epochs: int) -> None:
        """Prepare T1 for the first round: the statistics of S's features, and stage 1 alone."""
        host = self.host
        if not host.model.source_statistics_fitted:
            loaded = host.engine.batches(host.data.loader)
            placed = (self._place(batch, "target") for batch, _ in loaded)
            host.data.fit_source_statistics(host.networks, placed, host.engine.parallel)
        if not host.resume.warm and host.networks.has_source and epochs:
            self.run_stage(WARMUP, epochs)
        host.resume.warm = True

    def run_stage(self, stage: TrainingStage, epochs: int) -> None:
        """Run one stage: some epochs over the rows that it reads."""
        host = self.host
        if stage.kind is Stage.COUPLED:
            host.networks.fix_target()
        with self._running(stage):
            for _ in range(epochs):
                for batches, place in self._batches(stage):
                    if host._stop_training and place.first:
                        return
                    take_step(host, stage, batches, place, **self.kwargs)
            self._check_pictures()

    def _by_iterations(self) -> None:
        for batches in self._pairs():
            if self.host._stop_training:
                return
            for stage in self.stages:
                with self._running(stage):
                    take_step(self.host, stage, {stage.reads: batches[stage.reads]}, **self.kwargs)
                    self._check_pictures()
        self._measure(tuple(name for stage in self.stages for name in stage.measures))

    def _check_pictures(self) -> None:
        """Warn, once in a training, where T1's pictures are far larger than the images.

        T1(S(x)), which the latest step has drawn, is what T1(T2(x)) is drawn towards. Where T1
        learns from itself alone, nothing says how large its pictures are.
        """
        host = self.host
        networks, recipe = host.networks, host.recipe
        for batch in host.batches.values():
            drawn = batch.reconstruction_target
            if drawn is None or networks.warned_of_pictures or not networks.has_source:
                continue
            own, seen = (float(x.detach().float().square().mean()) for x in (drawn, batch.images))
            if own <= LARGE_PICTURES**2 * seen:
                continue
            networks.warned_of_pictures = True
            advice = "lower the learning rate"
            if not (recipe.fixed_goal or recipe.shares_steps):
                advice = "the goal of stage 2 moves with T1 here; take fixed_goal=True"
            warn_caller(
                f"T1 runs away: after stage 2 of epoch {host.clock.train_exp_epochs} its pictures "
                "of what S sees are far larger than the images (root mean square "
                f"{own**0.5:.3g} and {seen**0.5:.3g}), and T2 learns to follow them: {advice} "
                f"(dwa_lambda={recipe.dwa_lambda:g})."
            )

    def _epochs(self, stage: TrainingStage) -> int:
        """Return how often a stage passes over its data in the round."""
        host = self.host
        return host.recipe.epochs(stage, len(host.data.loader) / max(1, len(host.dataloader)))

    def _batches(self, stage: TrainingStage) -> Iterator[tuple[dict[str, Batch], MicroBatch]]:
        """Yield the mini-batches of one epoch of a stage, by the rows that they hold."""
        host = self.host
        if stage.beside and host.data.counts[1]:
            yield from ((batches, WHOLE) for batches in self._pairs())
            return
        rows = "target" if stage.beside else stage.reads
        loader = host.data.loader if rows == "target" else host.dataloader
        for batch, place in host.engine.batches(loader):
            yield {rows: self._place(batch, rows)}, place

    def _pairs(self) -> Iterator[dict[str, Batch]]:
        """Yield mini-batches of target and labelled rows, for as long as the longer set lasts.

        The other starts again; an empty one is left out.
        """
        host = self.host
        loaders = {"target": host.data.loader}
        if len(host.dataloader):
            loaders["labelled"] = host.dataloader
        steps = max(map(len, loaders.values()))
        cycles = [host.engine.cycle(loader, steps) for loader in loaders.values()]
        for batches in zip(*cycles, strict=True):
            pairs = zip(loaders, batches, strict=True)
            yield {rows: self._place(batch, rows) for rows, batch in pairs}

    def _place(self, batch: Batch, rows: str) -> Batch:
        host = self.host
        dataset = host.data.rows.target if rows == "target" else host.adapted_dataset
        if rows == "labelled":
            batch.tensors = labelled_rows(batch.tensors)
        return host.engine.place(batch, host.device, dataset)

    def _measure(self, names: tuple[str, ...]) -> None:
        """Measure importances at the weights as they are, where they are due."""
        host = self.host
        if not names or host._stop_training:
            return
        host.allocation.refresh(
            names,
            host.model,
            host.clock.train_exp_epochs,
            host.data.counts[0],
            lambda rows: host.data.sample(rows, host.device),
            host.engine.parallel.processes,
        )

    @contextmanager
    def _running(self, stage: TrainingStage) -> Iterator[None]:
        host = self.host
        host.running = stage
        host.networks.hidden = any(getattr(p, "reads_decoder_hidden", False) for p in host.plugins)
        trigger_plugins(host, "before_stage", **self.kwargs)
        try:
            yield
        finally:  # what plugins hold for a stage is let go where an error ends it, too
            trigger_plugins(host, "after_stage", **self.kwargs)
            host.batches = {}
