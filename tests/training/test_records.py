from types import SimpleNamespace

from avalanche_cetl.training.records import Records


def other_process(sums, rows):
    """Two processes that meet: this one, and one that has counted these."""
    return SimpleNamespace(alone=False, meet=lambda own: [own, (sums, rows)])


def test_means_are_taken_over_the_rows_of_a_round():
    records = Records()
    records.begin()
    records.add("L_c", 1.0, 1)
    records.add("L_c", 4.0, 2)
    records.add("L_rt", 0.5, 8)
    assert records.result() == {"L_c": 3.0, "L_rt": 0.5}
    records.begin()
    assert records.result() == {}


def test_announced_names_are_kept_once_in_the_order_of_their_arrival():
    records = Records(["L_rs", "L_c", "L_rs"])
    records.announce(["L_c", "L_view"])
    records.add("L_rt", 1.0, 1)
    records.add("L_view", 1.0, 1)
    assert records.names == ["L_rs", "L_c", "L_view", "L_rt"]


def test_a_loss_over_no_rows_is_named_and_has_no_mean():
    records = Records()
    records.add("L_c", 7.0, 0)
    assert records.names == ["L_c"] and records.result() == {}


def test_means_of_processes_are_merged_by_their_rows():
    records = Records()
    records.add("L_c", 1.0, 3)
    records.add("L_own", 2.0, 1)
    records.merge(other_process({"L_c": 5.0}, {"L_c": 1}))
    assert records.result() == {"L_c": 2.0, "L_own": 2.0}


def test_records_go_on_with_the_sums_that_were_kept():
    first, second = Records(), Records()
    first.add("L_c", 1.0, 1)
    second.load_state_dict(first.state_dict())
    for records in (first, second):
        records.add("L_c", 3.0, 3)
    assert first.result() == second.result() == {"L_c": 2.5}
