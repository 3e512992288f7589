"""Flow of solution procedure, FSP (Yim, Joo, Bae, Kim 2017), with torchdistill's matrices.

The matrix of two layers holds the products of their channels, averaged over positions; the
student's go towards the teacher's. That asks for equal channels on both sides, which the paper's
networks have; here a learned 1x1 convolution brings the student's maps to the teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from benchmarks.methods.distillation import Live
from benchmarks.methods.job import TransferJob
from benchmarks.methods.plain import naive


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Compute the mean squared difference of FSP matrices over layers, batch and entries.

    :param student: maps ``(N, C_i, H_i, W_i)``, first layer first.
    :param teacher: of the same channels, taken as constant; sizes may differ.
    """
    from torchdistill.losses.mid_level import FSPLoss

    losses = []
    for i in range(len(student) - 1):
        mine = FSPLoss.compute_fsp_matrix(student[i], student[i + 1])
        goal = FSPLoss.compute_fsp_matrix(teacher[i], teacher[i + 1])
        losses.append((mine - goal.detach()).square().mean())
    return torch.stack(losses).mean()


class FSP(SupervisedPlugin):
    """Adds the loss to a strategy's.

    :param teacher: a frozen network that reads what the student reads.
    :param teacher_layers: names of layers whose outputs are maps.
    :param student_layers: as many of the student's.
    :param example: a mini-batch, to find the channels.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        student_layers: Sequence[str],
        teacher_layers: Sequence[str],
        weight: float,
        example: Tensor,
        learning_rate: float,
    ):
        super().__init__()
        self.teacher, self.weight = teacher, weight
        self._maps: dict[str, list[Tensor]] = {"student": [], "teacher": []}
        self._hooks: list[Any] = []
        for role, network, names in (
            ("student", student, student_layers),
            ("teacher", teacher, teacher_layers),
        ):
            for name in names:
                layer = network.get_submodule(name)
                self._hooks.append(layer.register_forward_hook(self._keep(role)))
        with torch.no_grad():
            student(example)
            teacher(example)
        pairs = zip(self._maps["student"], self._maps["teacher"], strict=True)
        self.adapters = nn.ModuleList(
            nn.Conv2d(mine.shape[1], goal.shape[1], 1, bias=False) for mine, goal in pairs
        )
        self.adapters.to(example.device)
        self.optimizer = torch.optim.Adam(self.adapters.parameters(), learning_rate)
        self._forget()

    def _keep(self, role: str) -> Any:
        return lambda _module, _inputs, output: self._maps[role].append(output)

    def _forget(self) -> None:
        for maps in self._maps.values():
            maps.clear()

    def before_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Drop what other passes left."""
        self._forget()

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the loss."""
        with torch.no_grad():
            self.teacher(strategy.mb_x)
        maps = zip(self.adapters, self._maps["student"], strict=True)
        mine = [adapter(one.float()) for adapter, one in maps]  # half precision under autocast
        loss = fsp_loss(mine, self._maps["teacher"])
        strategy.loss = strategy.loss + self.weight * loss
        self.optimizer.zero_grad()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Train the 1x1 convolutions."""
        self.optimizer.step()
        self._forget()

    def after_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()


def train(job: TransferJob) -> nn.Module:
    """Train beside the labels, with the maps at 32, 16 and 8 pixels; the strength is the weight."""
    network = job.network()
    live = Live(job).eval().requires_grad_(False)
    plugin = FSP(
        network,
        live,
        ("features.1", "features.4", "features.10"),
        ("network.blocks.3", "network.blocks.7", "network.blocks.11"),
        job.strength,
        job.train[0][:2],
        job.budget.learning_rate,
    )
    return naive(job, network, plugins=[plugin])
