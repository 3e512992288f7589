"""Sums over the samples of several processes, each of which holds some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class StartAgainError(Exception):
    """A reason for all processes of a group to start their work again, another way."""


class OtherProcessError(RuntimeError):
    """Another process of the group failed, so this one stops; the message has the reason."""


class Processes:
    """The processes whose samples count together; without a group this one alone.

    :param group: of torch.distributed, gloo or nccl; None for this process alone.
    :ivar rank: of this process in the group.
    :ivar size: of the group.
    :raises ValueError: when torch.distributed is not initialised, or this process is not in
        the group.
    """

    def __init__(self, group: distributed.ProcessGroup | None):
        self.group = group
        self.rank, self.size = 0, 1
        if group is None:
            return
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError(
                "process_group needs torch.distributed.init_process_group() first; leave it None "
                "for one process."
            )
        self.rank = distributed.get_rank(group)
        if self.rank < 0:
            raise ValueError("this process does not belong to the process_group.")
        self.size = distributed.get_world_size(group)

    @classmethod
    def started(cls) -> Processes:
        """Return the default group of torch.distributed, or this process alone without one."""
        begun = distributed.is_available() and distributed.is_initialized()
        several = begun and distributed.get_world_size() > 1
        return cls(distributed.group.WORLD if several else None)

    def share_of_rows(self, count: int) -> tuple[slice, distributed.ProcessGroup | None]:
        """Return which of so many rows, which all processes have, this one works on.

        :return: the rows, and the group that shares them; all rows and None where there are fewer
            rows than processes.
        """
        if self.alone or count < self.size:
            return slice(None), None
        return slice(self.rank, None, self.size), self.group

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def meet(self, value: Any = None, problem: Exception | None = None) -> list[Any]:
        """Wait for all processes; return the value of each, in the order of ranks.

        :param value: of this process; it is pickled.
        :param problem: what went wrong in this process; the others then stop as well.
        :raises StartAgainError: when another process has a reason to start again.
        :raises OtherProcessError: when another process met any other problem.
        """
        if self.alone:
            return [value]
        again = isinstance(problem, StartAgainError)
        told = None if problem is None else f"{type(problem).__name__}: {problem}"
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, (told, again, value), group=self.group)
        if problem is not None:
            return []
        for rank, (other, restarts, _) in enumerate(found):
            if other is not None and not restarts:
                raise OtherProcessError(f"process {rank} failed: {other}")
        if any(restarts for _, restarts, _ in found):
            raise _StartAgainElsewhereError("a layer of another process")
        return [own for _, _, own in found]

    def report(self, problem: Exception) -> None:
        """Send a problem of this process to the others, which wait in :meth:`meet`."""
        if not isinstance(problem, OtherProcessError | _StartAgainElsewhereError):
            self.meet(problem=problem)

    def agree(self, value: Any) -> None:
        """Wait for all processes, and check that all have the same value.

        :raises StartAgainError: when they differ.
        """
        if any(other != value for other in self.meet(value)):
            raise _StartAgainElsewhereError("the processes' routes differ, so a layer")

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place; the same bits everywhere."""
        if self.alone:
            return
        for tensor in tensors:
            whole = tensor.contiguous()
            distributed.all_reduce(whole, group=self.group)
            if whole is not tensor:
                tensor.copy_(whole)

    def rows(self, tensor: Tensor, counts: Sequence[int]) -> Tensor:
        """Return all processes' rows, in the order of ranks.

        :param tensor: ``(n, ...)``, this process's rows.
        :param counts: rows of every process.
        """
        if self.alone:
            return tensor
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _StartAgainElsewhereError(StartAgainError):
    """A reason to start again that all processes have already."""
