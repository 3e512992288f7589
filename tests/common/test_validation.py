import inspect
import warnings

import pytest

from avalanche_cetl.common.validation import (
    check_choice,
    check_positive,
    check_weight,
    order_of_0_2,
    renamed,
)


@renamed(theirs="ours")
def function(ours=None, *, other=0):
    return ours, other


def test_a_name_from_elsewhere_is_taken_as_ours_with_a_warning_where_it_is_called():
    with pytest.warns(FutureWarning, match=r"theirs= is called ours= here.*ours=2\.0") as caught:
        assert function(theirs=2.0, other=1) == (2.0, 1)
    assert [one.filename for one in caught] == [__file__]
    assert "theirs" in inspect.signature(function).parameters


def test_without_it_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(1.0) == function(ours=1.0) == function(1.0, theirs=None) == (1.0, 0)


@pytest.mark.parametrize("arguments", [((1.0,), {}), ((), {"ours": 1.0}), ((), {"ours": 0.0})])
def test_both_names_at_once_are_refused(arguments):
    given, named = arguments
    with pytest.raises(TypeError, match="give ours= alone"):
        function(*given, **named, theirs=2.0)
    with pytest.warns(FutureWarning):
        assert function(ours=None, theirs=2.0) == (2.0, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_weights_and_positive_numbers_are_finite(value):
    for check in (check_weight, check_positive):
        with pytest.raises(ValueError, match="name="):
            check("name", value)
    check_weight("name", 0.0)
    with pytest.raises(ValueError, match="> 0"):
        check_positive("name", 0.0)


@pytest.mark.parametrize("allowed", [("old", "new"), {"old": 1, "new": 2}])
def test_a_choice_is_refused_with_all_that_are_allowed(allowed):
    check_choice("kind", "new", allowed)
    with pytest.raises(ValueError, match=r"^kind=3 is not known\. Allowed: 'old', 'new'\.$"):
        check_choice("kind", 3, allowed)


class Ordered:
    @order_of_0_2("temperature", "weight")
    def __init__(self, weight=1.0, *, temperature=4.0):
        self.found = weight, temperature


@pytest.mark.parametrize(
    ("arguments", "found"), [((2.0,), (1.0, 2.0)), ((2.0, 3.0), (3.0, 2.0))], ids=str
)
def test_positional_arguments_are_taken_in_their_earlier_order_with_a_warning(arguments, found):
    with pytest.warns(DeprecationWarning, match="give the arguments of Ordered by name: temper"):
        assert Ordered(*arguments).found == found


def test_arguments_by_name_are_taken_without_a_warning(recwarn):
    assert Ordered(weight=3.0, temperature=2.0).found == (3.0, 2.0) and not recwarn


def test_an_argument_that_is_given_twice_or_has_no_place_is_a_type_error():
    with pytest.raises(TypeError, match="temperature= twice"):
        Ordered(2.0, temperature=3.0)
    with pytest.raises(TypeError, match="by name"):
        Ordered(1.0, 2.0, 3.0)
