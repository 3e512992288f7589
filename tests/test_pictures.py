"""The pictures of the project: nobody needs to see colours to read one."""

import json
from itertools import combinations
from pathlib import Path

import pytest
from colour_vision import APART, alike, distance
from matplotlib.figure import Figure

from avalanche_cetl.demo.pictures import draw_bars, draw_stream
from avalanche_cetl.evaluation import LINE_STYLES, picture, plot_curves

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def continual(out):
    from benchmarks.continual import page

    page.draw(page.tested(), out)


def default(out):
    from benchmarks.continual import natural, natural_table
    from benchmarks.records import read

    natural_table.draw(read(natural.FILE)["runs"], out / "default.png")


def speed(out):
    from benchmarks.speed.fisher import plot_fisher, plot_growth

    for name, plot in (("fisher", plot_fisher), ("growth", plot_growth)):
        plot(json.loads((RESULTS / f"speed/{name}.json").read_text())["results"], out / name)


def losses_and_bound(out):
    from benchmarks.tables import fig2

    fig2.TABLE.render("cpu")


def validators(out):
    from benchmarks import validators

    found = [
        name for name in validators.DIRECTIONS if (RESULTS / f"validators/{name}.json").exists()
    ]
    validators.draw(found, out / "validators.png")


def demo(out):
    results = json.loads((RESULTS / "demo/seed-0.json").read_text())
    for block in ("few_labels", "no_target_label"):
        draw_bars(results[block], out / block)
    draw_stream(results["stream"], out / "stream.png")


def curves(out):
    names = ("L_c", "L_rs", "L_rt", "L_soft", "DWA1", "DWA2", "DWA3")
    plot_curves({name: [1.0 + i, 0.5] for i, name in enumerate(names)}, out / "curves.png")


@pytest.mark.skipif(not RESULTS.is_dir(), reason="the result files are in the repository")
@pytest.mark.parametrize(
    "draw",
    [continual, default, speed, losses_and_bound, validators, demo, curves],
    ids=lambda draw: draw.__name__,
)
def test_lines_and_bars_are_told_apart_without_green(draw, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(tmp_path)
    assert drawn
    assert not [pair for figure in drawn for pair in alike(figure)]


def test_every_mark_of_the_style_is_another_and_so_is_every_colour():
    assert len({style.marker for style in LINE_STYLES}) == len(LINE_STYLES)
    pairs = combinations([style.color for style in LINE_STYLES], 2)
    assert min(distance(*pair) for pair in pairs) > APART / 2


def test_a_green_and_a_red_line_without_marks_are_found_alike():
    figure, axes = picture(size=(2, 2))
    for color in ("#2ca02c", "#d62728"):  # matplotlib's own
        axes.plot([1, 2], color=color, linestyle="-", marker="")
    assert len(alike(figure)) == 1
    axes.lines[0].set_marker("s")
    assert not alike(figure)
    assert distance("#0072B2", "#D55E00") > 3 * distance("#2ca02c", "#d62728") / 2


def test_a_figure_shows_itself_in_a_notebook():
    figure, axes = picture(size=(1, 1))
    axes.plot([1, 2])
    axes.set_title("a < b")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert 'alt="Picture: a &lt; b" src="data:image/png;base64,' in figure._repr_html_()
