import pytest

from avalanche_cetl.training.progress import TrainingProgress


def expecting(rounds=2, finished=1, rows=(6, 3)):
    """Where a checkpoint lets the next call go on, and how often its state was put back."""
    progress, restored = TrainingProgress(), []
    progress.expect(
        finished=finished, calls=4, rounds=rounds, rows=list(rows),
        state=lambda: restored.append("state"),
    )  # fmt: skip
    return progress, restored


def test_finished_experiences_and_rounds_of_a_call_are_passed_over_once():
    progress, restored = expecting()
    assert progress.begin_call(["a", "b", "c"]) == ["b", "c"]
    assert progress.begin_experience((6, 3)) == 2 and restored == ["state"]
    progress.end_experience()
    assert progress.begin_experience((6, 3)) == 0 and restored == ["state"]
    progress.end_experience()
    assert progress.finished == 3
    progress.end_call()
    assert progress.begin_call(["a", "b"]) == ["a", "b"] and progress.calls == 5


def test_a_checkpoint_between_two_calls_passes_over_nothing():
    progress, restored = expecting(rounds=None)
    stream = ["a", "b"]
    assert progress.begin_call(stream) is stream
    assert progress.begin_experience((1, 1)) == 0 and restored == [] and progress.calls == 4


def test_other_rows_than_those_of_the_checkpoint_are_refused():
    progress, restored = expecting()
    progress.begin_call(["a", "b"])
    with pytest.raises(ValueError, match=r"\(5, 3\) target and labelled rows.*\(6, 3\)"):
        progress.begin_experience((5, 3))
    assert restored == []


def test_a_single_experience_in_the_place_of_a_stream_is_refused():
    progress, _ = expecting()
    with pytest.raises(ValueError, match="with more than 1"):
        progress.begin_call(object())


def test_a_state_is_whole_outside_of_a_call_alone():
    progress = TrainingProgress()
    assert progress.whole
    progress.begin_call([])
    assert not progress.whole
    progress.end_call()
    assert progress.whole and progress.calls == 1
