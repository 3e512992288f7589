"""Engine: device, precision, layout, compiled functions, accumulation, processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.described import Described
from avalanche_cetl.common.labels import features_in
from avalanche_cetl.common.validation import check_choice
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Strategy
from avalanche_cetl.training.group import TrainingGroup, batches_of, explained

Function = TypeVar("Function", bound=Callable[..., Any])
#: Names of the types that forward passes compute in.
Precision = Literal["float32", "bfloat16"]


class MicroBatch(NamedTuple):
    """A mini-batch's place among those that one step of the optimiser is made of.

    :ivar weight: its rows, of all processes, over the rows of all of them.
    """

    first: bool = True
    last: bool = True
    weight: float = 1.0


#: The place of a mini-batch that makes a step by itself.
WHOLE = MicroBatch()


class ForwardFunctions:
    """T1's and T2's forward functions in training, compiled where that is asked for.

    The compiled functions stand beside the modules, which keep their names and stay as they are
    for evaluation, importance passes and checkpoints.

    :param compiled: False, True, or the name of a backend of ``torch.compile``.
    :param channels_last: whether images are laid out channels last.
    """

    def __init__(self, compiled: bool | str = False, channels_last: bool = False):
        self.compiled, self.channels_last = compiled, channels_last
        self._made: dict[tuple[str, int], tuple[Any, Callable[..., Any]]] = {}

    def laid_out(self, x: Tensor) -> Tensor:
        """Return images in the memory layout of the networks."""
        if self.channels_last and x.dim() == 4:
            return x.contiguous(memory_format=torch.channels_last)
        return x

    def encode(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Return T2's code, as T1 reads it, and T2's logits, by task where it has such heads."""
        return self._of("encode", model, model.target_code)(x, tasks)

    def logits(self, model: CoupledModel, x: Tensor, tasks: Tensor) -> Tensor:
        """Return T2's logits."""
        labels = (tasks,) if model.target.heads_by_task else ()
        return self._of("logits", model, model.forward)(x, *labels)

    def decode(self, decoder: nn.Module, code: Tensor) -> Tensor:
        """Return T1's image."""
        # Called as a module T1 runs its hooks; compiled it is a function beside the module.
        function = self._of("decode", decoder, decoder.forward) if self.compiled else decoder
        image: Tensor = function(code)
        return image

    def decode_hidden(self, decoder: Any, code: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return T1's image and hidden layers."""
        outputs: tuple[Tensor, list[Tensor]] = self._of("hidden", decoder, decoder.forward_hidden)(
            code
        )
        return outputs

    def _of(self, name: str, owner: Any, function: Function) -> Function:
        if not self.compiled:
            return function
        key = name, id(owner)
        if key not in self._made:
            backend = self.compiled if isinstance(self.compiled, str) else "inductor"
            self._made[key] = owner, torch.compile(function, backend=backend)
        return self._made[key][1]  # type: ignore[return-value]


class Engine(Described):
    """How the steps are computed; what is learnt does not depend on it.

    :param precision: ``"float32"``, or ``"bfloat16"``: the forward passes under
        ``torch.autocast``; weights, losses, penalties and importances stay in float32.
    :param channels_last: lay images and convolutions out channels last, which is faster on GPUs
        with tensor cores and on many CPUs.
    :param accumulate: mini-batches to a step, >= 1; the gradient is the mean over all their rows,
        those of other processes too.
    :param compile: compile T1's and T2's training passes by ``torch.compile``; True, or the name
        of a backend.
    :ivar functions: T1's and T2's forward functions, compiled or not.
    :ivar parallel: the processes that train together.
    :raises ValueError: for values out of range.
    """

    def __init__(
        self, precision: Precision, channels_last: bool, accumulate: int, compile: bool | str
    ) -> None:
        _check(precision, channels_last, accumulate, compile)
        self.precision, self.channels_last, self.accumulate = precision, channels_last, accumulate
        self.functions = ForwardFunctions(compile, channels_last)
        self.parallel = TrainingGroup()

    def check_accumulation(self, shares_steps: bool) -> None:
        """Raise ValueError where stages share steps, and so would share gradients."""
        if self.accumulate > 1 and shares_steps:
            raise ValueError(
                f"accumulate={self.accumulate} goes with alternate='epoch' and variants with "
                "separate stages, such as variant='gfi': otherwise stages would share gradients."
            )

    @contextmanager
    def running(self, model: CoupledModel) -> Iterator[None]:
        """Run a call of ``train()``: with the processes that are there, and their errors told."""
        now = TrainingGroup()
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

    def batches(self, loader: Any) -> Iterator[tuple[Batch, MicroBatch]]:
        """Yield the mini-batches of one epoch, and their places in the steps.

        What is left at its end makes a step of its own.
        """
        left = batches_of(loader)
        while group := list(islice(left, self.accumulate)):
            rows = [batch.rows for batch in group]
            for i, batch in enumerate(group):
                yield batch, MicroBatch(i == 0, i == len(group) - 1, rows[i] / sum(rows))

    def cycle(self, loader: Any, steps: int) -> Iterator[Batch]:
        """Yield so many mini-batches, starting the loader again when it ends."""
        while steps > 0:
            for batch in islice(batches_of(loader), steps):
                yield batch
                steps -= 1

    def place(self, batch: Batch, device: torch.device, dataset: Any) -> Batch:
        """Put a mini-batch where and as the networks read it, and return it.

        :param batch: as it was loaded.
        :param device: of the networks.
        :param dataset: whose rows it has; S's features may be among them.
        """
        batch.tensors = [part.to(device, non_blocking=True) for part in batch.tensors]
        batch.tensors[0] = self.functions.laid_out(batch.tensors[0])
        batch.features = features_in(dataset, batch.tensors)
        return batch

    def cast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context of forward functions in the precision that is set."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def compute(self, loss: Callable[[], Tensor], device: torch.device) -> Tensor:
        """Compute the loss of a step in the precision, and over the processes, that are set."""
        with self.cast(device):
            return self.parallel.step(loss)

    @contextmanager
    def whole_batch(self, host: Strategy, batch: Batch) -> Iterator[None]:
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


def _check(precision: Any, channels_last: Any, accumulate: Any, compiled: Any) -> None:
    check_choice("precision", precision, get_args(Precision))
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
