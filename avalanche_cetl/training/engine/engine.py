"""Engine: device, precision, layout, compiled passes, accumulation, processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from avalanche_cetl.common.rows import FEATURES_INDEX
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.batch import Batch
from avalanche_cetl.training.engine.parallel import DataParallel, batches_of, explained
from avalanche_cetl.training.engine.parts import Part, parts
from avalanche_cetl.training.engine.passes import Passes, casting

#: Names of the types that forward passes compute in.
Precision = Literal["float32", "bfloat16"]


class Engine:
    """How the steps are computed; what is learnt does not depend on it.

    :param precision: ``"float32"``, or ``"bfloat16"``: the forward passes under
        ``torch.autocast``; weights, losses, penalties and importances stay in float32.
    :param channels_last: lay images and convolutions out channels last, which is faster on GPUs
        with tensor cores and on many CPUs.
    :param accumulate: mini-batches to a step, >= 1; the gradient is the mean over all their rows,
        those of other processes too.
    :param compile: compile T1's and T2's training passes by ``torch.compile``; True, or the name
        of a backend.
    :ivar passes: T1's and T2's passes, compiled or not.
    :ivar parallel: the processes that train together.
    :raises ValueError: for values out of range.
    """

    def __init__(
        self, precision: Precision, channels_last: bool, accumulate: int, compile: bool | str
    ) -> None:
        _check(precision, channels_last, accumulate, compile)
        self.precision, self.channels_last, self.accumulate = precision, channels_last, accumulate
        self.passes = Passes(compile, channels_last)
        self.parallel = DataParallel()

    def check_accumulation(self, shares_steps: bool) -> None:
        """Raise ValueError where stages share steps, and so would share gradients."""
        if self.accumulate > 1 and shares_steps:
            raise ValueError(
                f"accumulate={self.accumulate} goes with alternate='epoch' and variants with "
                "separate stages: otherwise stages would share gradients."
            )

    @contextmanager
    def running(self, model: CoupledModel) -> Iterator[None]:
        """Run a call of ``train()``: with the processes that are there, and their errors told."""
        now = DataParallel()
        if now.processes.size != self.parallel.processes.size:  # a group has begun, or ended
            self.parallel = now
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        try:
            yield
        except RuntimeError as problem:
            told = explained(problem, self.parallel)
            if told is problem:
                raise
            raise told from problem

    def batches(self, loader: Any) -> Iterator[tuple[Batch, Part]]:
        """Yield the mini-batches of one pass, and their places in the steps."""
        yield from parts(batches_of(loader), self.accumulate)

    def pairs(self, first: Any, second: Any) -> Iterator[tuple[Batch, Batch | None]]:
        """Yield batches of two loaders, for as long as the longer lasts; the other starts again.

        An empty second loader gives None.
        """
        steps = max(len(first), len(second))
        others = _cycle(second, steps) if len(second) else repeat(None, steps)
        yield from zip(_cycle(first, steps), others, strict=True)

    def place(self, batch: Batch, device: torch.device, features: bool) -> Batch:
        """Put a mini-batch where and as the networks read it, and return it.

        :param batch: as it was loaded.
        :param device: of the networks.
        :param features: whether S's features stand among its tensors.
        """
        batch.tensors = [part.to(device, non_blocking=True) for part in batch.tensors]
        batch.tensors[0] = self.passes.laid_out(batch.tensors[0])
        if features:
            batch.features = batch.tensors[FEATURES_INDEX]
        return batch

    def cast(self, device: torch.device) -> Any:
        """Return the context of forward passes in the precision that is set."""
        return casting(self.precision, device)

    def compute(self, loss: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Compute the loss of a step in the precision, and over the processes, that are set."""

        def cast() -> Tensor:
            with self.cast(device):
                return loss()

        return self.parallel.step(cast)

    @contextmanager
    def whole_batch(self, host: Any, batch: Batch) -> Iterator[None]:
        """Show metrics labels, tasks, outputs and loss of all processes' rows."""
        if self.parallel.alone:
            yield
            return
        tensors, output, loss = host.mbatch, host.mb_output, host.loss
        count = len(output) if batch.share else 0
        labels, tasks = (self.parallel.rows(tensors[i], count) for i in (1, -1))
        host.mbatch = [tensors[0], labels, *tensors[2:-1], tasks]
        host.mb_output = self.parallel.rows(output, count)
        host.loss = self.parallel.mean(loss)
        try:
            yield
        finally:
            host.mbatch, host.mb_output, host.loss = tensors, output, loss


def _cycle(loader: Any, steps: int) -> Iterator[Batch]:
    """Yield so many batches, starting the loader again when it ends."""
    done = 0
    while done < steps:
        for batch in batches_of(loader):
            yield batch
            done += 1
            if done == steps:
                return


def _check(precision: Any, channels_last: Any, accumulate: Any, compiled: Any) -> None:
    if precision not in get_args(Precision):
        allowed = ", ".join(map(repr, get_args(Precision)))
        raise ValueError(f"precision={precision!r} is not known. Allowed: {allowed}.")
    if not isinstance(channels_last, bool):
        raise ValueError(f"channels_last={channels_last!r} has to be True or False.")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(
            f"accumulate={accumulate!r} has to be >= 1: the number of mini-batches to a step."
        )
    if isinstance(compiled, str):
        known = torch.compiler.list_backends(exclude_tags=())
        if compiled not in known:
            raise ValueError(f"compile={compiled!r} is no backend here. Allowed: {known}.")
    elif not isinstance(compiled, bool):
        raise ValueError(f"compile={compiled!r} has to be True, False or a backend's name.")
