"""One round: the stages of a variant, by epochs or by iterations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from avalanche.training.utils import trigger_plugins

from avalanche_cetl.plugins.contract import Stage, reads_decoder_hidden
from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.engine.parts import WHOLE, Part
from avalanche_cetl.training.stages.base import Callbacks, TrainingStage
from avalanche_cetl.training.stages.step import take_step
from avalanche_cetl.training.variants import WARMUP


class Round:
    """One round of a strategy: every stage of its variant, and the measurements between them.

    :param host: the strategy.
    :param kwargs: of Avalanche's callbacks.
    """

    def __init__(self, host: Any, **kwargs: Any):
        self.host, self.kwargs = host, kwargs

    def run(self) -> None:
        """Run the round; a stop that is asked for ends the stage that runs, and the others."""
        recipe = self.host.recipe
        if self._alternates:
            self._by_iterations(self._with_rows())
            return
        for stage in self._stages():
            self.run_stage(stage, recipe.passes(stage.kind, self._ratio()))
            self._measure(stage.measures)

    @property
    def iterations(self) -> int:
        """Return how many of Avalanche's training iterations the round has."""
        host, ratio = self.host, self._ratio()
        loaders = {"target": host.data.loader, "labelled": host.dataloader}
        longer = max(map(len, loaders.values()))
        count = 0
        for stage in self._with_rows() if self._alternates else self._stages():
            if stage.callbacks is not Callbacks.ALL:
                continue
            if self._alternates:
                count += longer
            else:
                steps = longer if stage.beside else len(loaders[stage.reads])
                count += host.recipe.passes(stage.kind, ratio) * steps
        return count

    def warm_up(self, passes: int) -> None:
        """Prepare T1 for the first round: the statistics of S's features, and stage 1 alone."""
        host = self.host
        if not host.model.source_statistics_fitted:
            batches = host.engine.batches(host.data.loader)
            placed = (self._place(batch, "target") for batch, _ in batches)
            host.data.fit_source_statistics(host.networks, placed, host.engine.parallel)
        if not host.resume.warm and host.networks.has_source and passes:
            self.run_stage(WARMUP, passes)
        host.resume.warm = True

    def run_stage(self, stage: TrainingStage, passes: int) -> None:
        """Run one stage: some passes over the rows that it reads."""
        host = self.host
        if stage.kind is Stage.COUPLED:
            host.networks.fix_goal()
        with self._running(stage):
            for _ in range(passes):
                for batch, part in self._batches(stage):
                    if host._stop_training and part.first:
                        return
                    take_step(host, stage, batch, part, **self.kwargs)

    def _by_iterations(self, stages: list[TrainingStage]) -> None:
        host = self.host
        for target, labelled in host.engine.pairs(host.data.loader, host.dataloader):
            if host._stop_training:
                return
            rows = {"target": self._place(target, "target")}
            if labelled is not None:
                rows["labelled"] = self._place(labelled, "labelled")
            for stage in stages:
                with self._running(stage):
                    take_step(host, stage, rows[stage.reads], **self.kwargs)
        self._measure(tuple(name for stage in stages for name in stage.measures))

    @property
    def _alternates(self) -> bool:
        """Whether stages take turns from step to step."""
        recipe = self.host.recipe
        return recipe.alternate == "iteration" and not recipe.variant.merged

    def _with_rows(self) -> list[TrainingStage]:
        """Return the stages that run, without those of labelled rows where there are none."""
        labelled = self.host.data.counts[1]
        return [stage for stage in self._stages() if labelled or stage.reads != "labelled"]

    def _ratio(self) -> float:
        """Return how many mini-batches of target rows there are for one of labelled rows."""
        host = self.host
        return len(host.data.loader) / max(1, len(host.dataloader))

    def _stages(self) -> list[TrainingStage]:
        """Return the variant's stages that run: some fall away without S."""
        has_source = self.host.networks.has_source
        stages = self.host.recipe.variant.stages
        return [stage for stage in stages if has_source or not stage.needs_source]

    def _batches(self, stage: TrainingStage) -> Iterator[tuple[Batch, Part]]:
        """Yield the mini-batches of one pass of a stage, in their place."""
        host = self.host
        if stage.beside and not host.data.counts[1]:
            for batch, part in host.engine.batches(host.data.loader):
                self._place(batch, "target")
                batch.beside, batch.labelled = replace(batch), False
                yield batch, part
            return
        if stage.beside:
            for target, labelled in host.engine.pairs(host.data.loader, host.dataloader):
                assert labelled is not None, "there are labelled rows"
                labelled.beside = self._place(target, "target")
                yield self._place(labelled, "labelled"), WHOLE
            return
        loader = host.data.loader if stage.reads == "target" else host.dataloader
        for batch, part in host.engine.batches(loader):
            yield self._place(batch, stage.reads), part

    def _place(self, batch: Batch, rows: str) -> Batch:
        host = self.host
        features = rows == "target" and host.data.has_features
        return host.engine.place(batch, host.device, features)

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
        host.networks.hidden = reads_decoder_hidden(host.plugins)
        trigger_plugins(host, "before_stage", **self.kwargs)
        yield
        trigger_plugins(host, "after_stage", **self.kwargs)
        host.coupled = None
