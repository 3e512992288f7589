from types import SimpleNamespace

import pytest
from avalanche.core import SupervisedPlugin
from coupled_runs import coupled, strategy

from avalanche_cetl import transfer_benchmark
from avalanche_cetl.training import Stage
from avalanche_cetl.training.data import listed_classes


def test_adaptation_classifies_source_rows_and_reconstructs_target_rows(adaptation):
    seen = {"reconstruct": [], "classify": []}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            key = "classify" if strategy.stage is Stage.CLASSIFY else "reconstruct"
            seen[key] += strategy.mb_y.tolist()

    strategy(plugins=[Watch()], variant="e").train(adaptation.train_stream)
    assert len(seen["reconstruct"]) == 36 and set(seen["reconstruct"]) == {-1}
    assert len(seen["classify"]) == 30 and min(seen["classify"]) == 0


def test_an_experience_without_unlabelled_rows_trains(digits):
    strategy().train(transfer_benchmark(digits(20), digits(6)).train_stream)


@pytest.mark.parametrize("classes", [{2, 0, 1}, frozenset({1, 0}), [2, 1]], ids=str)
def test_classes_are_listed_in_their_order_and_come_back_as_they_were(classes):
    experience = SimpleNamespace(classes_in_this_experience=classes)
    with listed_classes(experience, None):
        shown = experience.classes_in_this_experience
        assert isinstance(shown, list) and (shown == sorted(classes) or shown is classes)
    assert experience.classes_in_this_experience is classes


@pytest.mark.parametrize("classes", [set(), [], frozenset()], ids=str)
def test_without_a_label_the_classes_are_all_outputs_of_t2(classes):
    experience = SimpleNamespace(classes_in_this_experience=classes)
    with listed_classes(experience, coupled()):
        assert experience.classes_in_this_experience == [0, 1, 2]
    assert experience.classes_in_this_experience is classes
