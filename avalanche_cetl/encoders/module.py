"""Any torch module as the frozen source network S."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.fingerprint import Fingerprint


class ModuleEncoder(Encoder):
    """Any torch module as a frozen source network.

    The module is copied, so training the original later does not change the encoder.

    :param module: a network; its own device and dtype are kept.
    :param layer: name of the layer whose output is the feature, flattened to one vector an
        image; default: what the last linear layer reads (pre-logits).
    :param input_shape: shape of one input, ``(C, H, W)``; one forward pass finds ``dim``.
    :param transform: applied to a batch of images before the module, e.g. a resize.
    :ivar num_classes: width of the module's output if that is ``(N, K)``, else None.
    :raises ValueError: when there is no such layer, or it does not run.
    :raises TypeError: when ``module`` is no torch module.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str | None = None,
        *,
        input_shape: Sequence[int],
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"ModuleEncoder needs a torch module, got {type(module).__name__}.")
        self.module = copy.deepcopy(module)
        self.transform = transform
        self.freeze()
        layers = dict(self.module.named_modules())
        linear = [name for name, m in layers.items() if isinstance(m, nn.Linear)]
        if layer is None and not linear:
            raise ValueError(
                "the module has no linear layer to read features before; name the layer that "
                f"gives them with layer=. It has {[name for name in layers if name]}."
            )
        if layer is not None and (not layer or layer not in layers):
            raise ValueError(
                f"layer={layer!r} is not in the module; it has {[name for name in layers if name]}."
            )
        self.layer = layer
        self._classifier = linear[-1] if linear else ""
        like = next(self.module.parameters(), torch.zeros(0))
        features, output = self._run(torch.zeros(1, *input_shape).to(like))
        self.dim = features.shape[1]
        flat = isinstance(output, Tensor) and output.dim() == 2
        self.num_classes = output.shape[1] if flat else None
        self._ends_in_classifier = False
        if flat and layer is None:
            last = self.module.get_submodule(self._classifier)
            self._ends_in_classifier = torch.equal(last(features), output)

    def extra_repr(self) -> str:
        """Name the layer in ``print(model)`` and the fingerprint."""
        return f"layer={self.layer!r}"

    def fingerprint(self) -> str:
        """Give a SHA-256 over module, layer and transform (by code and attributes)."""
        own = Fingerprint().text(super().fingerprint())
        return own.value(self.transform).hexdigest()

    def preprocess(self, x: Tensor) -> Tensor:
        """Apply the transform given at construction."""
        return self.transform(x) if self.transform is not None else x

    def encode(self, x: Tensor) -> Tensor:
        """Give the layer's output, flattened."""
        return self._run(x, preprocess=False)[0]

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Give the module's own output ``(N, num_classes)``."""
        if self.num_classes is None:
            return super().logits(x)
        return self.module(self.preprocess(x))

    @property
    def classifies_features(self) -> bool:
        """Whether the features are what the last linear layer reads, and its output the module's.

        Found by trying at construction.
        """
        return self._ends_in_classifier

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Give the module's output from what its last linear layer reads, ``(N, dim)``."""
        if not self.classifies_features:
            return super().classify(features)
        layer = self.module.get_submodule(self._classifier)
        return layer(features.to(layer.get_parameter("weight")))

    @torch.no_grad()
    def _run(self, x: Tensor, preprocess: bool = True) -> tuple[Tensor, Tensor]:
        captured: list[Tensor] = []
        if self.layer is not None:
            handle = self.module.get_submodule(self.layer).register_forward_hook(
                lambda _m, _args, output: captured.append(output)
            )
        else:
            handle = self.module.get_submodule(self._classifier).register_forward_pre_hook(
                lambda _m, args: captured.append(args[0])
            )
        try:
            output = self.module(self.preprocess(x) if preprocess else x)
        finally:
            handle.remove()
        if not captured:
            raise ValueError(f"layer={self.layer!r} did not run in the module's forward pass.")
        return captured[-1].flatten(1), output
