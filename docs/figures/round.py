"""Draw a round of CETL: its three stages, what runs, what trains, and what holds it.

``python docs/figures/round.py`` writes ``docs/figures/round.svg``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

#: Okabe and Ito's colours, which readers with colour-blindness tell apart.
TRAINS, LOSS = "#56B4E9", "#E69F00"
FROZEN, LINE, INK = "#ffffff", "#555555", "#1a1a1a"
HEIGHT = 0.62
PICTURE = Path(__file__).with_suffix(".svg")


class Panel:
    """One stage: boxes by name in a column of the picture.

    :param axes: to draw on.
    :param title: above the panel.
    :param reads: which rows it reads.
    """

    def __init__(self, axes: Axes, title: str, reads: str):
        self.axes = axes
        axes.set_xlim(0, 4)
        axes.set_ylim(-0.95, 4.75)
        axes.axis("off")
        axes.text(2, 4.55, title, ha="center", weight="bold", size=11, color=INK)
        axes.text(2, 4.2, reads, ha="center", size=9, color=INK)

    def box(self, x: float, y: float, text: str, color: str = FROZEN, width: float = 1.2) -> None:
        """Draw a box around a point; networks that stay as they are have a dashed border."""
        dashed = color == FROZEN and text not in ("x", "labels")
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - HEIGHT / 2), width, HEIGHT, boxstyle="round,pad=0.02",
                facecolor=color, edgecolor=LINE, linewidth=1.3, linestyle="--" if dashed else "-",
            )
        )  # fmt: skip
        self.axes.text(x, y, text, ha="center", va="center", size=9.5, color=INK)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], dashed: bool = False):
        """Draw an arrow between two points."""
        self.axes.add_patch(
            FancyArrowPatch(
                start, end, arrowstyle="-|>", mutation_scale=11, color=LINE, linewidth=1.3,
                linestyle=":" if dashed else "-", shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def below(self, penalty: str, measured: str) -> None:
        """Write what holds the weights, and what is measured after the stage."""
        self.axes.text(2, -0.35, penalty, ha="center", size=9, color=INK, weight="bold")
        self.axes.text(2, -0.75, measured, ha="center", size=9, color=INK)


def source(panel: Panel) -> None:
    """Draw stage 1."""
    panel.box(2, 3.6, "x")
    panel.box(2, 2.6, "S")
    panel.box(2, 1.6, "T1", TRAINS)
    panel.box(2, 0.5, r"L_rs = |T1(S(x)) $-$ x|²", LOSS, 3.0)
    panel.arrow((2, 3.27), (2, 2.95))
    panel.arrow((2, 2.27), (2, 1.95))
    panel.arrow((2, 1.27), (2, 0.85))
    panel.arrow((2.63, 3.6), (3.3, 0.85), dashed=True)
    panel.below("held by DWA2 (not in round 1)", "then GFI1 of T1 is measured")


def coupled(panel: Panel) -> None:
    """Draw stage 2."""
    panel.box(2, 3.6, "x")
    panel.box(0.9, 2.6, "S")
    panel.box(3.1, 2.6, "T2", TRAINS)
    panel.box(2, 1.6, "T1", TRAINS, 3.4)
    panel.box(2, 0.5, r"L_rt = |T1(T2(x)) $-$ T1(S(x))|²", LOSS, 3.6)
    panel.arrow((1.7, 3.27), (1.05, 2.95))
    panel.arrow((2.3, 3.27), (2.95, 2.95))
    for x in (0.9, 3.1):
        panel.arrow((x, 2.27), (x, 1.95))
        panel.arrow((x, 1.27), (x, 0.85), dashed=x < 2)
    panel.below("T1 is held by DWA1", "then GFI2 of T1 and GFI3 of T2 are measured")


def classify(panel: Panel) -> None:
    """Draw stage 3."""
    panel.box(1.1, 3.6, "x")
    panel.box(2.9, 3.6, "labels")
    panel.box(1.1, 2.1, "T2", TRAINS)
    panel.box(2, 0.5, "L_c, the criterion", LOSS, 3.0)
    panel.arrow((1.1, 3.27), (1.1, 2.45))
    panel.arrow((1.1, 1.77), (1.5, 0.85))
    panel.arrow((2.9, 3.27), (2.5, 0.85), dashed=True)
    panel.below("T2 is held by DWA3", "nothing is measured")


def main(path: Path = PICTURE) -> Path:
    """Draw the picture and return where it is."""
    options = {"font.family": "DejaVu Sans", "svg.hashsalt": "round", "svg.fonttype": "path"}
    with plt.rc_context(options):
        figure, axes = plt.subplots(1, 3, figsize=(10.4, 4.5))
        source(Panel(axes[0], "Stage 1: source", "all target images"))
        coupled(Panel(axes[1], "Stage 2: coupled", "all target images"))
        classify(Panel(axes[2], "Stage 3: classify", "images with a label"))
        figure.text(
            0.5, 0.03,
            "blue: trains in this stage     dashed border: stays as it is     orange: the loss     "
            "dotted: the goal, no gradient",
            ha="center", size=9, color=INK,
        )  # fmt: skip
        figure.subplots_adjust(0.01, 0.09, 0.99, 0.99, wspace=0.08)
        for left, right in pairwise(axes):
            middle = (left.get_position().x1 + right.get_position().x0) / 2
            figure.text(middle, 0.93, "→", ha="center", va="center", size=20, color=LINE)
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, facecolor="white", metadata=metadata, dpi=120)
        plt.close(figure)
    return path


if __name__ == "__main__":
    print(main())
