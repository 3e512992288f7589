"""The demo's table over seeds."""

import json

from benchmarks import demo_seeds


def test_the_best_accuracy_of_a_block_is_bold(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_seeds, "FOLDER", tmp_path)
    names = {"few_labels": "T2 alone", "no_target_label": "T2, source only"}
    for seed in (0, 1):
        document = {"seed": seed}
        for block, baseline in names.items():
            document[block] = [
                {"method": method, "target_accuracy": target + seed, "source_accuracy": source,
                 "seconds": 1.0, "source_error": 0.1, "target_error": 0.2, "note": ""}
                for method, target, source in (
                    (baseline, 50.0, 20.0), ("CETL gfi", 60.0, 10.0)
                )
            ]  # fmt: skip
        document["stream"] = [
            {"method": method, "averages": [9.0, last + seed], "first": [9.0, 5.0], "seconds": 2.0}
            for method, last in (("EWC", 70.0), ("GFIPlugin", 69.0))
        ]
        (tmp_path / f"seed-{seed}.json").write_text(json.dumps(document))
    lines = demo_seeds.table().splitlines()
    assert lines[0].startswith("Means over seeds 0, 1, with standard errors. Higher is better")
    assert lines[4] == ("| T2 alone | 50.5 ± 0.5 | +0.0 ± 0.0 | **20.0 ± 0.0** | 1.0 |  |")
    assert lines[5] == ("| CETL gfi | **60.5 ± 0.5** | +10.0 ± 0.0 | 10.0 ± 0.0 | 1.0 |  |")
    assert "| EWC | **70.5 ± 0.5** | +0.0 ± 0.0 | **5.0 ± 0.0** | 2.0 |  |" in lines
    assert "| GFIPlugin | 69.5 ± 0.5 | -1.0 ± 0.0 | **5.0 ± 0.0** | 2.0 |  |" in lines
    assert lines[-1].endswith("T1(S(x)) 0.100 ± 0.000, T1(T2(x)) 0.200 ± 0.000.")


def test_the_kept_table_is_that_of_the_kept_results():
    assert (demo_seeds.FOLDER / "table.md").read_text() == demo_seeds.table()
