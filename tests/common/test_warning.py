"""Warnings point at the user's line, however deep they are."""

import ast
import inspect
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import avalanche_cetl
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.encoders.preprocessing import Preprocessing

PACKAGE = Path(avalanche_cetl.__file__).parent


def line_before():
    """The number of the line before the one that calls this."""
    return inspect.currentframe().f_back.f_lineno - 1


class OwnWarning(RuntimeWarning):
    pass


def test_a_warning_of_the_user_s_own_code_is_at_the_line_itself():
    with pytest.warns(OwnWarning, match="^told$") as found:
        warn_caller("told", OwnWarning)
        here = line_before()
    assert (found[0].filename, found[0].lineno) == (__file__, here)


def test_pytorch_s_calls_are_passed_over():
    preprocessing = Preprocessing(1, (2, 2), mean=[0.5], std=[0.5])
    x = torch.tensor([0.0, 0.0, 0.0, 1.4]).view(1, 1, 2, 2)
    with pytest.warns(RuntimeWarning, match=r"reads \[0, 1\]") as found:
        nn.Sequential(nn.Identity(), preprocessing)(x)
        here = line_before()
    assert (found[0].filename, found[0].lineno) == (__file__, here)


def test_a_warning_is_shown_once_for_a_line_as_python_s_are():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_caller("again")
    assert len(found) == 1


def test_a_line_that_is_nowhere_but_in_the_package_is_named():
    names = {"__name__": "avalanche_cetl.somewhere", "warn_caller": warn_caller}
    with pytest.warns(UserWarning, match="told") as found:
        exec(compile("def f():\n    warn_caller('told')", "inner", "exec"), names)
        names["f"]()
    assert found[0].filename == __file__


def test_all_warnings_of_the_package_go_through_one_function():
    others = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "warning.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("warn", "warn_explicit")
    ]
    assert not others
