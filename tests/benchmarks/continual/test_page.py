from benchmarks.continual import page


def test_lines_differ_without_their_colours(monkeypatch, tmp_path):
    from matplotlib import pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    run = {"average_accuracy": 70.0, "accuracy": [[90.0, 50.0], [60.0, 80.0]]}
    page._draw_curves({"permuted-10": {name: [run] for name in page.CURVES}}, tmp_path / "t.png")
    lines = drawn[0].axes[0].get_lines()
    seen = {(line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(seen) == len(lines) == len(page.CURVES)
