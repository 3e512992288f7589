import math
from types import SimpleNamespace

from avalanche_cetl.plugins import History, Progress


def rounds(history, *losses):
    for found in losses:
        history.after_training_epoch(SimpleNamespace(has_stages=True, round_losses=found))


def test_a_history_keeps_the_means_of_every_round():
    history, current = History(), {"L_c": 1.0}
    rounds(history, current, {"L_c": 0.5, "DWA1": 0.1})
    current["L_c"] = 9.0
    assert history.rounds == [{"L_c": 1.0}, {"L_c": 0.5, "DWA1": 0.1}]


def test_a_table_is_not_a_number_in_rounds_without_a_loss():
    history = History()
    rounds(history, {"L_c": 1.0}, {"L_c": 0.5, "DWA1": 0.1})
    table = history.table()
    assert list(table) == ["DWA1", "L_c"] and table["L_c"] == [1.0, 0.5]
    assert math.isnan(table["DWA1"][0]) and table["DWA1"][1] == 0.1


def test_progress_ticks_once_a_round():
    ticks = []
    progress = Progress(lambda: ticks.append("tick"))
    for _ in range(3):
        progress.after_training_epoch(None)
    assert len(ticks) == 3
