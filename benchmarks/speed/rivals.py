"""The networks, and everything that computes an exact diagonal Fisher information."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl import CICNN, ResNet26, fisher_information

Values = dict[str, Tensor]


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]]:
    """Return by name how to build it, the shape of an image, the batch."""
    import timm

    def vit() -> nn.Module:
        return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)

    return {
        "cicnn": (lambda: CICNN(10, (3, 32, 32)), (3, 32, 32), 128),
        "resnet26": (lambda: ResNet26(10, (3, 32, 32)), (3, 32, 32), 128),
        "resnet18": (lambda: timm.create_model("resnet18", num_classes=10), (3, 64, 64), 64),
        "vit": (vit, (3, 64, 64), 64),
    }


class Setting:
    """A network in eval mode, a batch, and its labels."""

    def __init__(self, name: str, device: str, samples: int | None = None):
        build, shape, batch = networks()[name]
        torch.manual_seed(0)
        self.name, self.device = name, device
        self.model = build().to(device).eval()
        self.x = torch.randn(samples or batch, *shape, device=device)
        self.y = torch.randint(10, (len(self.x),), device=device)

    def plain(self) -> None:
        """Run one ordinary forward and backward pass."""
        self.model.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()

    def ours(self) -> Values:
        """Compute ours."""
        return fisher_information(self.model, self.x, "empirical", targets=self.y)

    def loop(self) -> Values:
        """Run one backward pass per sample."""
        params = dict(self.model.named_parameters())
        sums = {name: torch.zeros_like(p) for name, p in params.items()}
        for i in range(len(self.x)):
            loss = F.cross_entropy(self.model(self.x[i : i + 1]), self.y[i : i + 1])
            for name, g in zip(params, torch.autograd.grad(loss, params.values()), strict=True):
                sums[name] += g * g
        return {name: value / len(self.x) for name, value in sums.items()}

    def torch_func(self) -> Values:
        """Run vmap over gradients of single samples."""
        from torch.func import functional_call, grad, vmap

        params = {name: p.detach() for name, p in self.model.named_parameters()}

        def loss(weights: Values, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.model, weights, (x[None],)), y[None])

        rows = vmap(grad(loss), (None, 0, 0))(params, self.x, self.y)
        return {name: value.square().mean(0) for name, value in rows.items()}

    def _copy(self) -> nn.Module:
        """Make the same network anew, for libraries that change it."""
        found = networks()[self.name][0]().to(self.device).eval()
        found.load_state_dict(self.model.state_dict())
        return found

    @cached_property
    def _extended(self) -> tuple[nn.Module, nn.Module]:
        """Make BackPACK's network and loss, once."""
        from backpack import extend

        network = extend(self._copy(), use_converter=self.name != "cicnn")
        return network, extend(nn.CrossEntropyLoss(reduction="sum"))

    @cached_property
    def _sampled(self) -> nn.Module:
        """Make opacus's network, once."""
        from opacus import GradSampleModule

        found = GradSampleModule(self._copy(), loss_reduction="sum")
        for module in found.modules():  # it captures in training mode alone
            module.train(not isinstance(module, nn.Dropout))
        return found

    def backpack(self) -> Values:
        """Run BackPACK's SumGradSquared."""
        from backpack import backpack
        from backpack.extensions import SumGradSquared

        network, criterion = self._extended
        network.zero_grad()
        with backpack(SumGradSquared()):
            criterion(network(self.x), self.y).backward()
        params = network.parameters()
        names = dict(self.model.named_parameters())
        return {
            name: p.sum_grad_squared / len(self.x) for name, p in zip(names, params, strict=True)
        }

    def opacus(self) -> Values:
        """Square the per-sample gradients of opacus."""
        self._sampled.zero_grad()
        F.cross_entropy(self._sampled(self.x), self.y, reduction="sum").backward()
        values = {
            name.removeprefix("_module."): p.grad_sample.square().mean(0)
            for name, p in self._sampled.named_parameters()
        }
        for p in self._sampled.parameters():
            p.grad_sample = None
        return values

    def avalanche_ewc(self) -> Values:
        """Run Avalanche's EWC one sample at a time, the only batch size at which it is exact."""
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.training.plugins import EWCPlugin
        from torch.utils.data import TensorDataset

        targets = self.y.tolist()
        tensors = TensorDataset(self.x.cpu(), self.y.cpu())
        tensors.targets = targets  # type: ignore[attr-defined]
        data = as_classification_dataset(tensors)
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        found = EWCPlugin(1.0).compute_importances(
            self.model, nn.CrossEntropyLoss(), optimizer, data, self.device, 1
        )
        self.model.eval()
        return {name: value.data for name, value in found.items()}


def error(found: Values, wanted: Values) -> float:
    """Compute the largest relative error over parameters, in the Euclidean norm."""
    worst = 0.0
    for name, value in wanted.items():
        size = torch.linalg.vector_norm(value).item()
        if size > 0:
            worst = max(worst, torch.linalg.vector_norm(found[name] - value).item() / size)
    return worst
