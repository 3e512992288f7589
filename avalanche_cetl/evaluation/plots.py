"""Fig. 2's curves and pictures of reconstructions, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from avalanche_cetl.common.pictures import Picture, picture
from avalanche_cetl.evaluation.metrics import reconstruction_rows
from avalanche_cetl.models import CoupledModel


def plot_curves(history: Mapping[str, Sequence[float]], path: str | Path | None = None) -> Picture:
    """Draw losses (above, log scale) and DWA penalties (below) against rounds, as Fig. 2 does.

    Penalties are divided by their maximum, as in the paper, so that their shapes can be compared;
    the legend has the maximum.

    :param history: per quantity (``L_c``, ``L_rs``, ``L_rt``, ``DWA1`` ...) its value in each
        round, NaN where it did not occur. Names that begin otherwise are not drawn.
    :param path: where the PNG goes; None: nowhere.
    :return: the figure, which a notebook shows.
    :raises ValueError: when there is nothing to draw.
    """
    if not any(len(history[name]) for name in history if name.startswith(("L_", "DWA"))):
        raise ValueError(
            f"the history has no round of a quantity L_... or DWA..., but {sorted(history)}: "
            "nothing to draw."
        )
    figure, (losses, penalties) = picture(2, 1, size=(5.6, 6.4), sharex=True)
    for panel, prefix in ((losses, "L_"), (penalties, "DWA")):
        names = sorted(name for name in history if name.startswith(prefix))
        for name in names:
            values = torch.tensor(list(history[name]), dtype=torch.float64)
            rounds = torch.arange(1, len(values) + 1)
            label = name
            if prefix == "DWA":
                top = float(values.nan_to_num().max())
                values = values / top if top > 0 else values
                label = f"{name} (max {top:.2g})"
            panel.plot(rounds, values, label=label, markevery=max(1, len(values) // 20))
        if names:  # above the panel, where no curve is
            panel.legend(
                frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize="small"
            )
    losses.set_yscale("log")
    losses.set_ylabel("loss, mean over a round")
    penalties.set_ylabel("DWA / its maximum")
    penalties.set_ylim(-0.03, 1.08)
    lowest = penalties
    if not any(name.startswith("DWA") for name in history):
        penalties.set_axis_off()
        lowest = losses
    lowest.tick_params(labelbottom=True)
    lowest.set_xlabel("round")
    return _saved(figure, path)


def plot_reconstructions(
    model: CoupledModel, images: Tensor, path: str | Path | None = None, title: str = ""
) -> Picture:
    """Draw rows x, T1(S(x)) and T1(T2(x)) of some images.

    :param model: the coupled model; used in eval mode.
    :param images: ``(N, C, H, W)`` on the model's device.
    :param path: where the PNG goes; None: nowhere.
    :param title: written above the picture.
    :return: the figure, which a notebook shows.
    :raises ValueError: without an image.
    """
    if not len(images):
        raise ValueError(f"images is empty, of shape {tuple(images.shape)}: nothing to draw.")
    rows = reconstruction_rows(model, images)
    low, high = float(images.min()), float(images.max())
    size = (0.72 * len(images) + 1.2, 0.78 * len(rows) + 0.4)
    figure, axes = picture(len(rows), len(images), size=size, squeeze=False)
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, row, strict=True):
            shown = ((image.cpu().float() - low) / max(high - low, 1e-12)).clamp(0, 1)
            axis.imshow(shown.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis in line:
            axis.spines[:].set_visible(True)
    if title:
        figure.suptitle(title)
    return _saved(figure, path)


def _saved(figure: Picture, path: str | Path | None) -> Picture:
    if path is not None:
        figure.savefig(path)
    return figure
