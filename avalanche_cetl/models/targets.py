"""Target networks T2: the paper's CI-CNN, and any classifier as a target.

A target computes two things from an image: its *code* (the last hidden layer, which the shared
decoder reads) and its class logits. :func:`as_target` finds the code in any classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_cetl.common.hooks import Kept, Ran, watched
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.tensors import own_copy


def init_he(module: nn.Module) -> nn.Module:
    """Initialise convolutions and linear layers for rectifiers (He et al. 2015), biases at 0.

    Fan-in scaling with gain sqrt(2); transposed convolutions by their effective fan-in.
    Returns the module, changed in place.
    """
    for layer in module.modules():
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            kernel = layer.weight[0, 0].numel()
            stride = 1
            for step in layer.stride:
                stride *= step
            fan_in = layer.in_channels / layer.groups * kernel / stride
            nn.init.normal_(layer.weight, std=(2 / max(fan_in, 1)) ** 0.5)
        elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


class CICNN(nn.Module):
    """CI-CNN, the reduced AlexNet of section 4.1.1.

    Five 3x3 convolutions and three fully connected layers; 96, 256, 384, 384, 256 kernels
    and 4096, 4096 units of AlexNet become 32, 96, 128, 128, 96 and 1024, 1024 (between 1/2
    and 1/4), max pooling after convolutions 1, 2 and 5 as in AlexNet. For images of 64
    pixels and more the first convolution has stride 2. 3.0 M parameters at 32x32.

    :param num_classes: number of classes, >= 1.
    :param input_shape: ``(C, H, W)``, C 1 or more, H and W from 8 (the paper: 28 to 96).
    :param width: factor on all kernel counts, > 0; at least 1 kernel a layer is kept.
    :param dropout: probability before the two hidden fully connected layers, in [0, 1).
    :raises ValueError: for sizes outside these ranges.

    >>> CICNN(10, (3, 32, 32), width=0.25)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
        width: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        shape = tuple(int(size) for size in input_shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"input_shape={shape} has to be (channels, height, width).")
        channels, height, rows = shape
        if min(height, rows) < 8:
            raise ValueError(f"input_shape={shape}: CICNN needs at least 8x8 pixels.")
        if num_classes < 1 or width <= 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"num_classes={num_classes} has to be >= 1, width={width} > 0, "
                f"dropout={dropout} in [0, 1)."
            )
        c1, c2, c3, c4, c5 = (max(1, round(k * width)) for k in (32, 96, 128, 128, 96))
        hidden = max(1, round(1024 * width))
        stride = 2 if min(height, rows) >= 64 else 1
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(channels, c1, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c1, c2, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        height, rows = (-(-size // stride) // 8 for size in (height, rows))
        self.hidden = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(c5 * height * rows, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.head = nn.Linear(hidden, num_classes)
        init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the code, ``(N, 1024 * width)``: the last hidden layer after its rectifier."""
        result: Tensor = self.hidden(self.features(x))
        return result

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits ``(N, num_classes)`` of images ``(N, C, H, W)``."""
        result: Tensor = self.head(self.forward_features(x))
        return result


def reads_task_labels(module: nn.Module) -> bool:
    """Whether a network is one of Avalanche's with heads by task, called with task labels.

    It is recognised by the task labels that it keeps, because importing Avalanche takes seconds.
    """
    return hasattr(module, "known_train_tasks_labels")


def mask_values(model: nn.Module) -> list[Any]:
    """Return what a network's classifiers write in the place of units that do not count.

    Avalanche's do so for classes that they have not seen, unless they have ``masking=False``.
    """
    return [
        m.mask_value
        for m in model.modules()
        if getattr(m, "masking", False) and hasattr(m, "mask_value")
    ]


class Target(nn.Module):
    """Any classifier as the target network T2; made by :func:`as_target`.

    :ivar module: the classifier itself.
    :ivar code: name of the layer whose output is the code; None for "what the classifier's
        last linear layer reads".
    """

    _last: str | None = None  # name of the last linear layer, once one has run

    def __init__(self, module: nn.Module, code: str | None = None):
        super().__init__()
        self.module = module
        self.code = code
        layers = dict(module.named_modules())
        if code is not None and (code not in layers or not code):
            raise ValueError(
                f"code={code!r} names no layer of the target; it has "
                f"{[name for name in layers if name]}."
            )

    @property
    def heads_by_task(self) -> bool:
        """Whether the classifier reads task labels (Avalanche's ``MultiTaskModule``)."""
        return reads_task_labels(self.module)

    def forward(self, x: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Return the classifier's logits; ``x`` stays unchanged, even if a layer writes into it.

        :param task_labels: ``(N,)``; read by a classifier with heads by task alone.
        """
        labels = (task_labels,) if self.heads_by_task else ()
        result: Tensor = self.module(own_copy(x), *labels)
        return result

    def encode(self, x: Tensor, task_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the code, flattened to ``(N, D)``, and the logits, from one forward pass.

        The code is what its layer computed, even if later layers write into the same memory; ``x``
        stays unchanged.

        :param task_labels: as in :meth:`forward`; None: any head, for the code alone.
        """
        if task_labels is None and self.heads_by_task:
            known: Any = self.module.known_train_tasks_labels
            task_labels = torch.full((len(x),), min(known, default=0), device=x.device)
        what = f"the target's code layer {self.code or 'before its last linear layer'!r}"
        ran, reads = Ran(), self.code is None
        layer = self.classifier() if reads else self.module.get_submodule(str(self.code))
        with ExitStack() as stack:
            kept = {layer: stack.enter_context(Kept(layer, what, reads=reads))}
            if reads and isinstance(layer, nn.Linear) and self._last is None:
                # Which one is the last is seen in this pass, so all of them are read.
                kinds = nn.Linear | nn.MultiheadAttention
                linear = [m for m in self.module.modules() if isinstance(m, kinds)]
                kept |= {
                    m: stack.enter_context(Kept(m, what, reads=True))
                    for m in linear
                    if isinstance(m, nn.Linear) and m is not layer
                }
                stack.enter_context(watched(linear, ran.see))
            logits = self.forward(x, task_labels)
        last = ran.last(logits)
        if last is not None:
            layer, self._last = last, {m: name for name, m in self.module.named_modules()}[last]
        code = kept[layer].latest(
            f"{what} did not run in its forward pass; name another one with "
            "as_target(module, code=...)."
        )
        if len(code) != len(x):
            raise ValueError(
                f"{what} ran on {len(code)} of {len(x)} images, as a layer of one task does; name "
                "one that reads all with as_target(module, code=...)."
            )
        return code.flatten(1), logits

    def classifier(self) -> nn.Module:
        """Return the last linear layer, or the heads by task: what reads the unnamed code.

        The last one is the one whose output the logits are, or else the last that ran; before
        the first forward pass of :meth:`measure` or :meth:`encode` the last one registered.

        :raises ValueError: when there is no such layer.
        """
        heads = [m for m in self.module.modules() if reads_task_labels(m)]
        if heads and heads[-1] is not self.module:
            return heads[-1]
        linear = {n: m for n, m in self.module.named_modules() if isinstance(m, nn.Linear)}
        if self._last not in linear:
            self._last = None  # the network has other layers now
        if not linear:
            raise ValueError(
                "the target has no linear layer, so its code cannot be found; name the layer "
                "that gives it with as_target(module, code='layer.name')."
            )
        return linear[self._last] if self._last is not None else list(linear.values())[-1]

    def measure(self, input_shape: Sequence[int]) -> tuple[int, int]:
        """Return the code's width and the number of classes, from one forward pass.

        :raises ValueError: when the target does not take ``input_shape``, or returns no logits.
        """
        self._last = None
        first = next(self.parameters(), torch.zeros(0, dtype=torch.float32))
        # Two images: a forward pass with squeeze() in it would take one for none.
        example = torch.zeros(2, *input_shape, device=first.device, dtype=first.dtype)
        with evaluation_mode(self), torch.no_grad():
            try:
                code, logits = self.encode(example)
            except RuntimeError as problem:
                raise ValueError(
                    f"the target network cannot read input_shape={tuple(input_shape)}: {problem}"
                ) from problem
            last = self._last
        self._last = last  # evaluation_mode() has put back what this pass left
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(example):
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the target network gives {kind} for {len(example)} images; a classifier gives "
                "logits (N, classes). Wrap it in a module that returns them."
            )
        return code.shape[1], logits.shape[1]


def as_target(module: nn.Module | str, code: str | None = None, **timm_arguments: Any) -> Target:
    """Return any classifier as a target network T2.

    :param module: a module that returns class logits, or the name of a timm model (made with
        ``timm.create_model(name, **timm_arguments)`` (:func:`timm.create_model`), untrained unless
        ``pretrained=True``). One with heads by task (Avalanche's ``MultiTaskModule``) is called
        with task labels.
    :param code: name of the layer whose output is the code; default: the input of the last
        linear layer, i.e. the last hidden layer; with heads by task what they all read. The last
        one is the one whose output the logits are, or else the last that runs, wherever it stands
        in the module. Maps are flattened to one vector an image.
    :return: the wrapped module; a :class:`Target` is returned as it is.
    :raises ValueError: when there is no such layer.
    :raises TypeError: when the argument is no module.

    >>> as_target(CICNN(10, (1, 28, 28), width=0.25)).measure((1, 28, 28))
    (256, 10)
    """
    if isinstance(module, str):
        import timm

        module = timm.create_model(module, **timm_arguments)
    if not isinstance(module, nn.Module):
        raise TypeError(f"a target has to be a torch module or a timm name, got {type(module)}.")
    if isinstance(module, Target):
        if code is not None and code != module.code:
            raise ValueError(f"this target's code is already {module.code!r}; got code={code!r}.")
        return module
    return Target(module, code)
