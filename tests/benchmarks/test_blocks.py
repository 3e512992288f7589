"""Blocks of the README and of the documentation, from result files made here."""

import pytest

from benchmarks import blocks


def test_the_least_cost_of_a_network_is_bold_ours_or_not(monkeypatch):
    medians = {"ours": 1.5, "torch_func": 1.44, "opacus": 2.0}
    fisher = {name: {k: {"median": v} for k, v in medians.items()} for name in blocks.NETWORKS}
    fisher["vit"]["ours"]["median"] = 1.2
    monkeypatch.setattr(blocks, "_results", lambda name: {"results": fisher})
    lines = blocks._cost_of_fisher().splitlines()
    assert lines[2].split(" | ")[1:5] == ["1.50", "**1.4**", "cannot", "2.0"]
    assert lines[-1].split(" | ")[1:3] == ["**1.20**", "1.4"]


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_every_block_is_made_from_the_kept_results(name):
    assert blocks.BLOCKS[name]()


def test_the_headline_leaves_out_rows_whose_runs_are_not_all_there(monkeypatch):
    def runs(count, name="accuracy"):
        return [{name: 80.0 + number} for number in range(count)]

    suite = {task: {"T2 alone": runs(3)} for task, _ in blocks.HAVE.values()}
    suite["digits-mini"]["CETL, preset best"] = runs(2)
    suite["MN-US, no source data"] = {"S itself": runs(1), "CETL, preset best": runs(3)}
    monkeypatch.setattr("benchmarks.suite.page.tested", suite.get)
    methods = {"GFIPlugin": 80, "EWC:strength=100": 70, "MAS:strength=1": 75, "LwF:strength=3": 60}
    streams = [
        {"stream": stream, "method": method, "optimiser": "adam", "seed": seed}
        | {"average_accuracy": value + seed}
        for stream, seeds in {"rotated": range(13, 18), "fashion-permuted": (13, 14)}.items()
        for method, value in methods.items()
        for seed in seeds
    ]
    monkeypatch.setattr(blocks, "_results", lambda name: {"runs": streams})
    rows = [line.split(" | ")[:3] for line in blocks.headline().splitlines() if line[:1] == "|"]
    assert rows[2:] == [
        ["| S and images, no label at all (digits)", "80.0 (S itself)", "81.0 ± 0.6"],
        [f"| {blocks.STREAM_OF['rotated']}", "90.0 ± 0.7 (MAS, tuned)", "95.0 ± 0.7"],
    ]
