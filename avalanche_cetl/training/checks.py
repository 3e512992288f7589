"""Bad arguments and bad data, found before they train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from avalanche.training.plugins.clock import Clock
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)
from torch import Tensor
from torch.optim import Optimizer

from avalanche_cetl.common.labels import UNLABELLED, Rows
from avalanche_cetl.common.validation import NonFiniteLossError
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.features.attach import check_source
from avalanche_cetl.models.coupled import CoupledModel
from avalanche_cetl.plugins.base import names_of


def check_networks(model: Any, optimizer: Optimizer) -> None:
    """Raise an error unless the optimiser covers a coupled network.

    :raises TypeError: for another network.
    :raises ValueError: when one of several parameter groups lacks parameters.
    """
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


@torch.no_grad()
def check_experience(model: CoupledModel, rows: Rows, experience: int, taught: bool) -> None:
    """Raise ValueError when an experience lacks what training needs, and say what.

    Shapes and labels are read from the first row and from the ``targets`` attribute, the network
    that stored features are of from their fingerprint.

    :param model: the coupled network.
    :param rows: of the experience.
    :param experience: its number, for the error.
    :param taught: whether a plugin teaches T2 classes without labels.
    """
    if not len(rows.labelled) and not len(rows.target):
        raise ValueError(
            f"experience {experience} has no image that training reads: no row of domain 0 "
            "(target), and none with a label. Leave it out of the stream, or look at what took "
            "its rows away."
        )
    if not len(rows.labelled) and not taught:
        raise ValueError(
            f"experience {experience} has no labelled row (all labels are {UNLABELLED}), so there "
            "is nothing to classify: give labels_per_class or labelled_fraction, labelled source "
            "rows (adaptation_benchmark), or plugins that need no label: "
            'SoftTargets(rows="target"), InformationMaximization, preset="best".'
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
        if not len(dataset):
            continue
        shape = tuple(torch.as_tensor(dataset[0][0]).shape)
        if shape != model.input_shape:
            raise ValueError(
                f"experience {experience}: {name} images have shape {shape}, but the model was "
                f"built for {model.input_shape}; resize them in the benchmark's transforms, or "
                "build the model with that input_shape."
            )
    if rows.has_features and isinstance(model.source, Encoder):
        check_source(rows.target, model.source, f"experience {experience}")


def check_loss_names(plugins: Sequence[Any]) -> None:
    """Refuse plugins whose loss has no name, and warn of two that record losses of one name.

    :param plugins: that the user gave.
    :raises ValueError: naming the plugin.
    """
    owners: dict[str, str] = {}
    for plugin in plugins:
        kind = type(plugin).__name__
        for name in names_of([plugin]):
            if not name:
                raise ValueError(
                    f"{kind} has no name for its loss: set name in the class, such as 'L_margin'."
                )
            if name in owners:
                warn_caller(
                    f"{owners[name]} and {kind} both record {name}, so that round_losses has the "
                    "mean of the two: set another name in one."
                )
            owners[name] = kind


def check_taken_names(plugins: Sequence[Any], variant: str, recorded: Iterable[str]) -> None:
    """Raise ValueError where a plugin records a loss under a name that the stages record too.

    :param plugins: of the strategy.
    :param variant: its variant's name.
    :param recorded: names of the losses and penalties of the variant's stages.
    """
    taken = set(recorded)
    for plugin in plugins:
        for name in names_of([plugin]):
            if name in taken:
                raise ValueError(
                    f"{type(plugin).__name__} records {name}, which the stages of variant "
                    f"{variant!r} record themselves: give the plugin's loss another name."
                )


def check_replay(plugins: Iterable[Any], dataset: Any) -> None:
    """Warn of a plugin whose memory holds, or is about to hold, mostly rows without a label.

    What it replays are rows to classify, and these teach nothing.

    :param plugins: of the strategy.
    :param dataset: of the experience, with all its rows.
    """
    for plugin in plugins:
        policy = getattr(plugin, "storage_policy", None)
        if policy is None or isinstance(policy, ClassBalancedBuffer):  # it keeps all classes
            continue
        held = getattr(policy, "buffer", ())
        if not len(held) and type(policy) in (ExperienceBalancedBuffer, ReservoirSamplingBuffer):
            held = dataset  # they draw from all rows alike
        labels = [int(label) for label in getattr(held, "targets", ())]
        if 2 * sum(label < 0 for label in labels) > len(labels):
            name = type(plugin).__name__
            warn_caller(
                f"{name} keeps rows whether they have a label or not, and most of them have none: "
                "replayed, they teach nothing. Give it "
                "storage_policy=ClassBalancedBuffer(mem_size), of "
                "avalanche.training.storage_policy, which keeps labelled rows of every class, or "
                f"leave {name} out."
            )


def check_classes(rows: Rows, classes: int, experience: int) -> None:
    """Raise ValueError when a label has no output of the (adapted) network."""
    highest = max((int(label) for label in rows.labelled.targets), default=UNLABELLED)
    if highest >= classes:
        raise ValueError(
            f"experience {experience} has the label {highest}, but the target network has "
            f"{classes} outputs (classes 0 to {classes - 1}); give it more, or remap the labels."
        )


def check_finite_loss(name: str, loss: Tensor, x: Tensor, clock: Clock, stage: str) -> None:
    """Raise an error when a loss of a mini-batch is not finite.

    :param name: of the loss.
    :param loss: of the mini-batch.
    :param x: the mini-batch's images.
    :param clock: the strategy's.
    :param stage: the label of the stage that runs.
    :raises NonFiniteLossError: when the loss is NaN or infinite.
    :raises ValueError: when the images are.
    """
    if torch.isfinite(loss).all():
        return
    check_finite_images(x, clock)
    epoch, experience = clock.train_exp_epochs, clock.train_exp_counter
    raise NonFiniteLossError(
        f"{name} became {float(loss.detach().sum())} in {stage}, epoch {epoch}, "
        f"experience {experience}. The images are finite: lower the learning rate or dwa_lambda, "
        "or normalise the input."
    )


def check_finite_weights(model: CoupledModel, clock: Clock) -> None:
    """Raise NonFiniteLossError when a trained weight is NaN or infinite.

    A loss can be finite and its gradient not; after the last step no loss would tell.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise NonFiniteLossError(
                f"the weights {name} hold NaN or infinity after epoch {clock.train_exp_epochs}, "
                f"experience {clock.train_exp_counter}, though the losses were finite: their "
                "gradients were not. Lower the learning rate, or look for a layer without a "
                "gradient at some input."
            )


def check_finite_images(x: Tensor, clock: Clock) -> Tensor:
    """Return a mini-batch's images.

    :raises ValueError: when they hold NaN or infinity.
    """
    if torch.isfinite(x).all():
        return x
    rows = (~torch.isfinite(x)).flatten(1).any(1).sum()
    raise ValueError(
        f"{int(rows)} of {len(x)} images of a mini-batch hold NaN or infinity (experience "
        f"{clock.train_exp_counter}, epoch {clock.train_exp_epochs}); clean the data set or its "
        "transform."
    )
