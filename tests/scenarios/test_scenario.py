import pickle

import pytest
import torch
from sets import rgb

from avalanche_cetl import adaptation_benchmark, plot_benchmark, transfer_benchmark


def test_the_summary_counts_rows_labels_and_classes(digits):
    benchmark = adaptation_benchmark(
        digits(45), digits(60), digits(30), labels_per_class=2, source_test=digits(9)
    )
    lines = benchmark.summary().splitlines()
    cells = {tuple(line.split()[:3]): line.split()[3:] for line in lines[1:]}
    assert cells["train", "0", "target"] == ["60", "6", "(10", "%)", "3", "1x8x8"]
    assert cells["train", "0", "source"] == ["45", "45", "(100", "%)", "3", "1x8x8"]
    assert cells["source_test", "0", "source"][0] == "9" and len(lines) == 7


def test_the_contact_sheet_has_a_row_of_every_part(digits, tmp_path):
    benchmark = adaptation_benchmark(rgb(12, (8, 8)), digits(30), digits(2))
    figure = plot_benchmark(benchmark, count=4)
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 4 * 4 and len(drawn) == 4 * 4 - 2
    assert "?" in {axes.get_title() for axes in drawn}
    figure.savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 2000
    with pytest.raises(ValueError, match="count=0"):
        plot_benchmark(benchmark, count=0)


def test_without_a_labelled_target_row_the_missing_stream_is_explained(digits):
    benchmark = adaptation_benchmark(digits(12), digits(12), digits(12))
    assert not hasattr(benchmark, "labelled_stream")
    with pytest.raises(AttributeError, match="none of its target training rows has a label"):
        _ = benchmark.labelled_stream
    with pytest.raises(AttributeError, match="no attribute 'other_stream'"):
        _ = benchmark.other_stream
    assert pickle.loads(pickle.dumps(benchmark)).classes is None


def test_benchmarks_pickle(digits):
    benchmark = adaptation_benchmark(digits(30), digits(30), digits(30))
    copied = pickle.loads(pickle.dumps(benchmark.train_stream[0].dataset))
    assert torch.equal(copied[31][0], benchmark.train_stream[0].dataset[31][0])


@pytest.mark.parametrize("low, high", [(0.0, 1.5), (-0.5, 1.0), (0.2, 0.8)])
def test_pictures_of_standardised_images_are_drawn_in_the_range_of_colours(low, high, monkeypatch):
    import matplotlib.axes

    drawn = []
    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", lambda _, x, **k: drawn.append(x))
    images = torch.linspace(low, high, 3 * 64).reshape(3, 1, 8, 8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = low, high
    few = (images, torch.arange(3))
    plot_benchmark(transfer_benchmark(few, few))
    lows, highs = zip(*((float(x.min()), float(x.max())) for x in drawn), strict=True)
    wanted = (low, high) if low >= 0 and high <= 1 else (0.0, 1.0)
    assert lows == pytest.approx([wanted[0]] * len(lows))
    assert highs == pytest.approx([wanted[1]] * len(highs))
