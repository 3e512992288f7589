"""Sources that are trained here."""

import torch

from benchmarks.methods import sources
from benchmarks.tables import table2


def test_a_source_is_trained_once_and_kept(photographs, monkeypatch, tmp_path):
    budget = table2.BUDGETS["smoke"]
    first = sources.other_classes(budget, "nowhere")
    train = sources.fit_plainly
    monkeypatch.setattr(sources, "fit_plainly", None)
    assert first.fingerprint() == sources.other_classes(budget, "nowhere").fingerprint()
    for path in (tmp_path / "cache" / "benchmarks").iterdir():  # from nothing, the same again
        path.unlink()
    monkeypatch.setattr(sources, "fit_plainly", train)
    torch.manual_seed(5)
    assert first.fingerprint() == sources.other_classes(budget, "nowhere").fingerprint()
