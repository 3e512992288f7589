import pytest

from avalanche_cetl.training.resume import Resume


def expecting(rounds=2, finished=1, rows=(6, 3)):
    """Where a checkpoint lets the next call go on, and how often its state was put back."""
    resume, restored = Resume(), []
    resume.expect(
        finished=finished, calls=4, rounds=rounds, rows=list(rows),
        state=lambda: restored.append("state"),
    )  # fmt: skip
    return resume, restored


def test_finished_experiences_and_rounds_of_a_call_are_passed_over_once():
    resume, restored = expecting()
    assert resume.begin_call(["a", "b", "c"]) == ["b", "c"]
    assert resume.begin_experience((6, 3)) == 2 and restored == ["state"]
    resume.end_experience()
    assert resume.begin_experience((6, 3)) == 0 and restored == ["state"]
    resume.end_experience()
    assert resume.finished == 3
    resume.end_call()
    assert resume.begin_call(["a", "b"]) == ["a", "b"] and resume.calls == 5


def test_a_checkpoint_between_two_calls_passes_over_nothing():
    resume, restored = expecting(rounds=None)
    stream = ["a", "b"]
    assert resume.begin_call(stream) is stream
    assert resume.begin_experience((1, 1)) == 0 and restored == [] and resume.calls == 4


def test_other_rows_than_those_of_the_checkpoint_are_refused():
    resume, restored = expecting()
    resume.begin_call(["a", "b"])
    with pytest.raises(ValueError, match=r"\(5, 3\) target and labelled rows.*\(6, 3\)"):
        resume.begin_experience((5, 3))
    assert restored == []


def test_a_single_experience_in_the_place_of_a_stream_is_refused():
    resume, _ = expecting()
    with pytest.raises(ValueError, match="with more than 1"):
        resume.begin_call(object())


def test_a_state_is_whole_outside_of_a_call_alone():
    resume = Resume()
    assert resume.whole
    resume.begin_call([])
    assert not resume.whole
    resume.end_call()
    assert resume.whole and resume.calls == 1
