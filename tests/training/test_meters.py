from types import SimpleNamespace

from avalanche_cetl.training.meters import LossMeters


def other_process(sums, rows):
    """Two processes that meet: this one, and one that has counted these."""
    return SimpleNamespace(alone=False, meet=lambda own: [own, (sums, rows)])


def test_means_are_taken_over_the_rows_of_a_round():
    meters = LossMeters()
    meters.begin()
    meters.add("L_c", 1.0, 1)
    meters.add("L_c", 4.0, 2)
    meters.add("L_rt", 0.5, 8)
    assert meters.result() == {"L_c": 3.0, "L_rt": 0.5}
    meters.begin()
    assert meters.result() == {}


def test_announced_names_are_kept_once_in_the_order_of_their_arrival():
    meters = LossMeters(["L_rs", "L_c", "L_rs"])
    meters.announce(["L_c", "L_view"])
    meters.add("L_rt", 1.0, 1)
    meters.add("L_view", 1.0, 1)
    assert meters.names == ["L_rs", "L_c", "L_view", "L_rt"]


def test_a_loss_over_no_rows_is_named_and_has_no_mean():
    meters = LossMeters()
    meters.add("L_c", 7.0, 0)
    assert meters.names == ["L_c"] and meters.result() == {}


def test_means_of_processes_are_merged_by_their_rows():
    meters = LossMeters()
    meters.add("L_c", 1.0, 3)
    meters.add("L_own", 2.0, 1)
    meters.merge(other_process({"L_c": 5.0}, {"L_c": 1}))
    assert meters.result() == {"L_c": 2.0, "L_own": 2.0}


def test_meters_go_on_with_the_sums_that_were_kept():
    first, second = LossMeters(), LossMeters()
    first.add("L_c", 1.0, 1)
    second.load_state_dict(first.state_dict())
    for meters in (first, second):
        meters.add("L_c", 3.0, 3)
    assert first.result() == second.result() == {"L_c": 2.5}
