"""DecoderHints: T1's hidden layers, read from T2's code, towards what S's code makes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import Strategy, training_of
from avalanche_cetl.plugins.losses import DistillationPlugin


def hint_loss(output: Tensor, hint: Tensor) -> Tensor:
    """Mean squared error over the hint's mean square: 0 when equal, about 1 for an output of 0.

    The l2 of FitNets (Romero et al. 2015, eq. 3), made independent of the hint's scale.

    :param output: what becomes the hint, of any shape.
    :param hint: of the same shape, taken as constant.
    """
    hint = hint.detach()
    return F.mse_loss(output, hint) / hint.square().mean().clamp_min(1e-8)


class DecoderHints(DistillationPlugin):
    """T1's hidden layers, read from T2's code, towards what they are when read from S's.

    Adds :func:`hint_loss`, mean over T1's hidden layers, in stage 2. The paper matches T1's
    output alone. In a variant without reconstructions, as the default ``"direct"``, it does
    nothing, and warns.

    :param weight: >= 0.
    :raises ValueError: in training, when the decoder has no ``forward_hidden``.
    """

    name = "L_hint"
    reads_logits = False
    reads_decoder_hidden = True

    def __init__(self, weight: float = 1.0):
        super().__init__(weight, "target")

    def fits(self, model: nn.Module) -> bool:
        """Return whether the decoder has hidden layers to match."""
        return isinstance(model, CoupledModel) and hasattr(model.decoder, "forward_hidden")

    def before_training(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Check the decoder."""
        if not isinstance(strategy.model, CoupledModel):
            raise ValueError("DecoderHints needs a CoupledModel: only that one has a decoder.")
        super().before_training(strategy, *args, **kwargs)
        if not self.fits(strategy.model):
            raise ValueError(
                "DecoderHints needs a decoder with forward_hidden(code), such as ReversedDecoder; "
                f"got {type(strategy.model.decoder).__name__}."
            )
        if not training_of(strategy).reconstructs:
            warn_caller(
                "DecoderHints does nothing here: no stage draws images from T2's code. Leave it "
                "out, or give CETLStrategy a variant with a decoder, such as 'gfi'."
            )

    def loss(self, strategy: Strategy, batch: Batch) -> Tensor | None:
        """Return the loss of a mini-batch; None where T1 has not decoded it."""
        if not batch.hidden_target:
            return None
        pairs = zip(batch.hidden, batch.hidden_target, strict=True)
        return torch.stack([hint_loss(hidden, target) for hidden, target in pairs]).mean()
