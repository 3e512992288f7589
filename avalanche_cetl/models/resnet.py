"""ResNet-26 for small images, the teacher of the paper's distillation experiments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.models.targets import init_he


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; the second BatchNorm starts as usual, at 1."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet26(nn.Module):
    """ResNet-26: three stages of four two-convolution blocks, 6n + 2 layers with n = 4.

    The design of He et al. (2016, section 4.2) for CIFAR, with 16, 32 and 64 kernels, as Yim et
    al. (2017) use it; section 4.3 of the CETL paper takes it as the teacher. Shortcuts that
    change the shape are 1x1 convolutions. 0.37 M parameters.

    :param num_classes: number of classes, >= 1.
    :param input_shape: ``(C, H, W)``, H and W from 8.
    :param width: factor on all kernel counts, > 0.
    :raises ValueError: for sizes outside these ranges.

    >>> import torch
    >>> ResNet26(10, (3, 32, 32))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int, input_shape: Sequence[int] = (3, 32, 32), width: float = 1.0
    ):
        super().__init__()
        if num_classes < 1 or len(input_shape) != 3 or min(input_shape[1:]) < 8 or not width > 0:
            raise ValueError(
                f"ResNet26(num_classes={num_classes}, input_shape={tuple(input_shape)}, "
                f"width={width}): needs at least 1 class, (C, H, W) from 8 pixels, width > 0."
            )
        counts = [max(1, round(16 * 2**stage * width)) for stage in range(3)]
        self.conv = nn.Conv2d(input_shape[0], counts[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(counts[0])
        blocks: list[nn.Module] = []
        before = counts[0]
        for stage, count in enumerate(counts):
            for i in range(4):
                blocks.append(_Block(before, count, 2 if stage and not i else 1))
                before = count
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        result: Tensor = self.head(x.mean((2, 3)))
        return result
