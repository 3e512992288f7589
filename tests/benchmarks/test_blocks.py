"""The README's blocks, from result files made here."""

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
