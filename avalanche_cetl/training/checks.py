"""Bad arguments and bad data, found before they train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.arguments import check_weight
from avalanche_cetl.common.errors import NonFiniteLossError
from avalanche_cetl.common.rows import UNLABELLED, Rows
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features.attach import check_source
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.training.variants import Variant


class LabelledRows(nn.Module):
    """A criterion that leaves unlabelled rows (label -1) out of the mean.

    Plugins hand whole data sets to ``strategy._criterion`` (EWC's importances do), so the
    data rule has to hold there too. Without any labelled row the loss is 0.

    :param criterion: ``(outputs, labels) -> scalar``.
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.criterion = criterion

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Give the criterion over the labelled rows."""
        if labels.is_floating_point() or bool((labels >= 0).all()):
            return self.criterion(outputs, labels)
        known = labels >= 0
        if not known.any():
            return outputs.sum() * 0
        return self.criterion(outputs[known], labels[known])


def check_arguments(
    model: Any,
    optimizer: Optimizer,
    variant: Variant,
    gfi: Any,
    loss_weights: Sequence[float],
    dwa_lambda: float,
    alternate: str,
    stage_epochs: Sequence[int],
    warmup_epochs: int,
    input_noise: float,
    fixed_goal: bool,
    lr_factors: Sequence[float],
) -> None:
    """Raise TypeError or ValueError with what was given, what is allowed and the remedy."""
    if not isinstance(model, CoupledModel):
        raise TypeError(
            f"CETLStrategy needs a CoupledModel, got {type(model).__name__}; make one with "
            "CoupledModel.build(source, target, input_shape=(C, H, W))."
        )
    covered = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in covered]
    if missing and len(optimizer.param_groups) > 1:
        raise ValueError(
            f"the optimizer has {len(optimizer.param_groups)} parameter groups, but none holds "
            f"{missing[0]!r} ({len(missing)} parameters in all); put model.decoder_parameters() "
            "and model.target_parameters() into groups."
        )
    if not isinstance(gfi, GFISettings):
        raise TypeError(f"gfi has to be GFISettings(...), got {type(gfi).__name__}.")
    if len(loss_weights) != 3 or not all(math.isfinite(w) and w >= 0 for w in loss_weights):
        raise ValueError(
            f"loss_weights={loss_weights!r}: three finite weights >= 0 of L_rs, L_c, L_rt."
        )
    check_weight("dwa_lambda", dwa_lambda)
    if alternate not in ("epoch", "iteration"):
        raise ValueError(f"alternate={alternate!r} is not known. Allowed: 'epoch', 'iteration'.")
    if len(stage_epochs) != 3 or not all(isinstance(n, int) and n >= 1 for n in stage_epochs):
        raise ValueError(f"stage_epochs={stage_epochs!r}: three whole numbers >= 1, one a stage.")
    if alternate == "iteration" and tuple(stage_epochs) != (1, 1, 1):
        raise ValueError(
            "stage_epochs goes with alternate='epoch'; with 'iteration' stages share steps."
        )
    if len(lr_factors) != 2 or not all(math.isfinite(f) and f > 0 for f in lr_factors):
        raise ValueError(f"lr_factors={lr_factors!r}: two finite factors > 0, of stages 1 and 2.")
    if warmup_epochs < 0 or (
        warmup_epochs == 0 and variant.needs_warmup and model.source is not None
    ):
        raise ValueError(
            f"warmup_epochs={warmup_epochs}: has to be >= 0, and >= 1 for variant "
            f"{variant.value!r}, which trains T1 on L_rs in the warm-up alone."
        )
    if not 0 <= input_noise < 1:
        raise ValueError(f"input_noise={input_noise} is outside [0, 1).")
    if fixed_goal and (alternate == "iteration" or variant.plan.merged is not None):
        raise ValueError(
            "fixed_goal=True goes with alternate='epoch' and variants that have a stage 2: "
            "otherwise the goal and T1 take turns at every mini-batch anyway."
        )


@torch.no_grad()
def check_experience(model: CoupledModel, rows: Rows, experience: int) -> None:
    """Raise ValueError when an experience lacks what training needs, and say what.

    Shapes and labels are read from the first row and from the ``targets`` attribute, the network
    that stored features are of from their fingerprint.
    """
    if not len(rows.labelled):
        raise ValueError(
            f"experience {experience} has no labelled row (all labels are {UNLABELLED}), so there "
            "is nothing to classify: give labels_per_class or labelled_fraction, or labelled "
            "source rows (adaptation_benchmark)."
        )
    if not len(rows.target):
        raise ValueError(
            f"experience {experience} has no row of domain 0 (target), so there is nothing to "
            "reconstruct: domain_labels has to be 0 for target rows, 1 for source rows."
        )
    labels = {int(label) for label in rows.target.targets} | {
        int(label) for label in rows.labelled.targets
    }
    if min(labels) < UNLABELLED:
        raise ValueError(
            f"experience {experience} has the label {min(labels)}; allowed are {UNLABELLED} "
            "(unlabelled) and class indices from 0."
        )
    for name, dataset in (("target", rows.target), ("labelled", rows.labelled)):
        shape = tuple(torch.as_tensor(dataset[0][0]).shape)
        if shape != model.input_shape:
            raise ValueError(
                f"experience {experience}: {name} images have shape {shape}, but the model was "
                f"built for {model.input_shape}; resize them in the benchmark's transforms, or "
                "build the model with that input_shape."
            )
    if rows.has_features and isinstance(model.source, Encoder):
        check_source(rows.target, model.source, f"experience {experience}")


def check_classes(rows: Rows, classes: int, experience: int) -> None:
    """Raise ValueError when a label has no output of the (adapted) network."""
    highest = max(int(label) for label in rows.labelled.targets)
    if highest >= classes:
        raise ValueError(
            f"experience {experience} has the label {highest}, but the target network has "
            f"{classes} outputs (classes 0 to {classes - 1}); give it more, or remap the labels."
        )


def check_finite_loss(
    name: str, loss: Tensor, x: Tensor, stage: str, epoch: int, experience: int
) -> None:
    """Raise NonFiniteLossError when a loss is NaN or infinite, ValueError when its images are."""
    if torch.isfinite(loss).all():
        return
    check_finite_images(x, epoch, experience)
    raise NonFiniteLossError(
        f"{name} became {float(loss.detach().sum())} in {stage}, epoch {epoch}, experience "
        f"{experience}. The images are finite: lower the learning rate or dwa_lambda, or "
        "normalise the input."
    )


def check_finite_weights(model: CoupledModel, epoch: int, experience: int) -> None:
    """Raise NonFiniteLossError when a trained weight is NaN or infinite.

    A loss can be finite and its gradient not; after the last step no loss would tell.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise NonFiniteLossError(
                f"the weights {name} hold NaN or infinity after epoch {epoch}, experience "
                f"{experience}, though the losses were finite: their gradients were not. Lower "
                "the learning rate, or look for a layer without a gradient at some input."
            )


def check_finite_images(x: Tensor, epoch: int, experience: int) -> None:
    """Raise ValueError when images of a mini-batch hold NaN or infinity."""
    if torch.isfinite(x).all():
        return
    rows = (~torch.isfinite(x)).flatten(1).any(1).sum()
    raise ValueError(
        f"{int(rows)} of {len(x)} images of a mini-batch hold NaN or infinity (experience "
        f"{experience}, epoch {epoch}); clean the data set or its transform."
    )
