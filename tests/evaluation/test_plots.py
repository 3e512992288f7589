import math

import pytest
import torch
from coupled_runs import SHAPE, coupled

from avalanche_cetl.evaluation import plot_curves, plot_reconstructions


def test_curves_and_reconstructions_are_figures_which_may_be_written(tmp_path):
    model = coupled()
    history = {"L_c": [1.0, 0.5], "DWA1": [0.0, 3.0], "DWA2": [math.nan, 1.0]}
    images = torch.rand(4, *SHAPE)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    shown = [
        plot_curves(history, paths[0]),
        plot_curves({"L_c": [1.0]}, str(paths[1])),
        plot_reconstructions(model, images, paths[2], "t"),
    ]
    assert sorted(tmp_path.iterdir()) == paths
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    shown += [plot_curves(history), plot_reconstructions(model, images)]
    assert all(figure._repr_html_().startswith("<img alt=") for figure in shown)
    assert sorted(tmp_path.iterdir()) == paths


def test_pictures_of_nothing_are_refused(tmp_path):
    model = coupled(source=None)
    with pytest.raises(ValueError, match=r"images is empty, of shape \(0, 1, 8, 8\)"):
        plot_reconstructions(model, torch.rand(0, *SHAPE), tmp_path / "r.png")
    for history in ({}, {"L_c": []}, {"accuracy": [1.0]}):
        with pytest.raises(ValueError, match=r"the history has no round .*nothing to draw"):
            plot_curves(history, tmp_path / "c.png")
    assert not list(tmp_path.iterdir())
