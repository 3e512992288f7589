"""What a picture looks like to someone who does not see green (deuteranopia)."""

from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb

#: Machado, Oliveira and Fernandes (2009), deuteranomaly of severity 1, on linear RGB.
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
#: Linear sRGB to XYZ (D65), over the white point.
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
) / np.array([[0.95047], [1.0], [1.08883]])
#: Distance in CIELAB from which two colours are told apart in thin lines and small marks.
APART = 20.0


def lab(color):
    """Return a colour as it is seen without green, in CIELAB."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(np.clip(XYZ @ np.clip(DEUTERANOPIA @ linear, 0, 1), 1e-3, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one, other):
    return float(np.linalg.norm(lab(one) - lab(other)))


def alike(figure):
    """Return pairs of lines, or of bars named in a legend, that cannot be told apart.

    Lines of one style count as one. Those with distinct marks, or bars with distinct hatches, are
    told apart whatever their colours.
    """
    found = []
    for axes in figure.axes:
        lines = {(str(line.get_color()), _mark(line)) for line in axes.lines}
        bars = {
            (patch.get_facecolor(), patch.get_hatch() or "")
            for patch in axes.patches
            if axes.get_legend() is not None
        }
        for kind in (lines, bars):
            found += [
                (one, other)
                for one, other in combinations(sorted(kind, key=str), 2)
                if one[1] == other[1] and distance(one[0], other[0]) < APART
            ]
    return found


def _mark(line):
    mark = line.get_marker()
    return "" if mark in (None, "None", " ") else str(mark)
