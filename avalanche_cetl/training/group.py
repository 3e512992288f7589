"""Several processes: each takes its share of every mini-batch; torch averages the gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.processes import OtherProcessError, Processes
from avalanche_cetl.models.coupled import CoupledModel


class TrainingGroup:
    """The processes that train together, or this one alone.

    All have the same model, and see the mini-batches that one process would see; each loads and
    computes its share of the rows. A step's loss is computed inside the forward pass of torch's
    DistributedDataParallel, which averages the gradients in the backward pass.

    :ivar processes: the default group of torch.distributed, where it is initialised.
    """

    def __init__(self) -> None:
        self.processes = Processes.started()
        self._wrapped: DistributedDataParallel | None = None

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.processes.alone

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and shows bars."""
        return self.processes.rank == 0

    def cover(self, model: CoupledModel, modules: Iterable[nn.Module] = ()) -> None:
        """Take T1 and T2 as they are now, with the first process's weights everywhere.

        :param model: with T1 and T2.
        :param modules: those of the stages.
        """
        if self.alone:
            return
        self._wrapped = None  # its hooks go before new ones come
        # A stage trains some of the weights only.
        self._wrapped = DistributedDataParallel(_Steps(model, modules), find_unused_parameters=True)

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute a loss whose backward pass averages gradients over the processes."""
        if self._wrapped is None:
            return loss()
        total: Tensor = self._wrapped(loss)
        return total

    def shared(self, loader: Any) -> Any:
        """Return a loader of this process's share of every mini-batch."""
        return loader if self.alone else SharedLoader(self.whole(loader), self.processes)

    def whole(self, loader: Any) -> Any:
        """Return a loader of all rows: Avalanche's own would draw a part for each process."""
        if not self.alone and hasattr(loader, "distributed_sampling"):
            loader.distributed_sampling = False
        return loader

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over the processes, detached."""
        if self.alone:
            return value
        total = value.detach().clone()
        self.processes.add([total])
        return total / self.processes.size

    def rows(self, tensor: Tensor, count: int) -> Tensor:
        """All processes' first ``count`` rows, detached, in the order of the mini-batch."""
        counts = self.processes.meet(count)
        return self.processes.rows(tensor.detach()[:count], counts)


class _Steps(nn.Module):
    """T1 and T2; its forward pass is whatever a step computes with them."""

    def __init__(self, model: CoupledModel, modules: Iterable[nn.Module]):
        super().__init__()
        own = (model.decoder, model.source_adapter, model.target_adapter, model.target, *modules)
        self.parts = nn.ModuleList(part for part in own if part is not None)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Compute the loss of a step."""
        return loss()


class SharedLoader:
    """A loader's mini-batches, of each the rows that belong to this process.

    The order is that of the first process's random numbers, whatever the others draw. A process
    for which a small last mini-batch has no row reads one that does not count.

    :param loader: Avalanche's, or torch's.
    :param processes: that share each mini-batch.
    """

    def __init__(self, loader: Any, processes: Processes):
        self.loader, self.processes = loader, processes

    def __len__(self) -> int:
        return len(self._torch())

    def _torch(self) -> DataLoader[Any]:
        """Torch's loader behind Avalanche's."""
        inner: DataLoader[Any] = (
            self.loader if isinstance(self.loader, DataLoader) else self.loader._get_loader()
        )
        return inner

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches():
            yield batch.tensors

    def batches(self) -> Iterator[Batch]:
        """Yield this process's mini-batches, with their share and the rows of all processes."""
        whole = self._torch()
        # As many draws from the global generator as torch's own iterator makes, in its order.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        batches = self._order(whole)
        own, counts = [], []
        for rows in batches:
            mine = rows[self.processes.rank :: self.processes.size]
            counts.append((len(mine) * self.processes.size / len(rows), len(rows)))
            own.append(mine or rows[:1])
        loader = DataLoader(
            whole.dataset,
            batch_sampler=own,
            num_workers=whole.num_workers,
            collate_fn=whole.collate_fn,
            pin_memory=whole.pin_memory,
            generator=torch.Generator().manual_seed(seed + self.processes.rank),
        )
        for (share, total), tensors in zip(counts, loader, strict=True):
            yield Batch(tensors, share=share, rows=total)

    def _order(self, whole: DataLoader[Any]) -> list[list[int]]:
        """Rows of every mini-batch, as the first process draws them."""
        assert whole.batch_sampler is not None
        shared: list[Any] = [None]
        if self.processes.rank == 0:
            shared = [[[int(row) for row in rows] for rows in whole.batch_sampler]]
        distributed.broadcast_object_list(shared, src=0, group=self.processes.group)
        batches: list[list[int]] = shared[0]
        return batches


def batches_of(loader: Any) -> Iterator[Batch]:
    """Yield a loader's mini-batches, of all rows or of this process's."""
    if isinstance(loader, SharedLoader):
        yield from loader.batches()
        return
    for tensors in loader:
        yield Batch(tensors, rows=len(tensors[0]))


def explained(problem: RuntimeError, group: TrainingGroup) -> RuntimeError:
    """Say so when another process has gone."""
    text = str(problem)
    lost = ("onnection closed", "onnection reset", "Timed out", "timed out", "NCCL", "Broken pipe")
    if group.alone or not any(sign in text for sign in lost):
        return problem
    return OtherProcessError(
        f"process {group.processes.rank} stops, because another process of the group ended or "
        f"does not answer: {text[:300]}"
    )
