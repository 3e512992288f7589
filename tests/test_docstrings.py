"""Docstrings and signatures have the same parameters."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
from avalanche.training.templates import SupervisedTemplate

import avalanche_cetl

FIELD = re.compile(r"^\s*:(param|ivar)\s+\**(\w+):(.*?)(?=^\s*:\w+|^\s*$|\Z)", re.M | re.S)
NAME = re.compile(r"``(\w+)``")
LINK = r":\w+:`[~!.]?([\w.]+)`"
#: ``see :class:`X`, as ``mode`` and ``rank```` describes these arguments too, by X's docstring.
LIKEWISE = re.compile(rf"\s*see\s+{LINK},\s+as\s+(?P<names>.*)", re.S)
#: All other arguments are described elsewhere.
OTHERS = re.compile(rf"arguments\s+are\s+those\s+of\s+{LINK}|see\s+{LINK},\s+as\s+all\s+below")
RANGE = re.compile(r"``(\w+)``\s+to\s+``(\w+)``")
KEYWORDS = inspect.Parameter.VAR_KEYWORD
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, KEYWORDS)


def signature(thing: Any) -> dict[str, Any]:
    """Return the kinds of the arguments of a function or a class, by name."""
    function = thing.__init__ if isinstance(thing, type) else thing
    found = inspect.signature(inspect.unwrap(function)).parameters
    return {name: p.kind for name, p in found.items() if name not in ("self", "cls")}


def text_of(thing: Any) -> str:
    """Return a docstring of its own; of a class also that of its ``__init__``."""
    own = vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__
    init = vars(thing).get("__init__") if isinstance(thing, type) else None
    return (
        inspect.cleandoc(own or "") + "\n\n" + inspect.cleandoc(getattr(init, "__doc__", "") or "")
    )


def bases(thing: Any) -> list[type]:
    """Return the classes of the same package that a class derives from."""
    if not isinstance(thing, type):
        return []
    package = thing.__module__.split(".")[0]
    return [base for base in thing.__mro__[1:] if base.__module__.split(".")[0] == package]


def claimed(text: str) -> set[str]:
    """Return the names that a docstring says are arguments."""
    found = set()
    for kind, name, body in FIELD.findall(text):
        if kind == "param":
            found.add(name)
            likewise = LIKEWISE.match(body)
            found |= set(NAME.findall(likewise["names"])) if likewise else set()
    return found


def described(thing: Any, place: dict[str, Any]) -> set[str]:
    """Return the names that a docstring describes, itself or by a link.

    :param place: the names of its module.
    """
    text, arguments = text_of(thing), list(signature(thing))
    found = {name for _, name, _ in FIELD.findall(text)} | set(NAME.findall(text))
    for first, last in RANGE.findall(text):
        if first in arguments and last in arguments:
            found |= set(arguments[arguments.index(first) : arguments.index(last) + 1])
    if re.search(r"arguments\s+are\s+those\s+of\s+every\s+Avalanche\s+strategy", text):
        found |= signature(SupervisedTemplate).keys()
    for links in OTHERS.findall(text):
        name = "".join(links).rpartition(".")[2]
        found |= described(place[name] if name in place else every_name()[name], place)
    for base in bases(thing):
        found |= described(base, vars(sys.modules[base.__module__]))
    return found


def faults(thing: Any, place: dict[str, Any]) -> list[str]:
    """Return what is wrong with the arguments in a docstring.

    :param place: the names of its module.
    """
    arguments = signature(thing)
    taken = set(arguments)
    if KEYWORDS in arguments.values():
        taken |= {name for base in bases(thing) for name in signature(base)}
    claims = claimed(text_of(thing))
    wrong = [f"{name} is no argument" for name in sorted(claims - taken)]
    if not claims:
        return wrong
    known = described(thing, place)
    asked = [name for name, kind in arguments.items() if kind not in VARIADIC]
    return wrong + [f"{name} is not described" for name in asked if name not in known]


def modules() -> Iterator[ModuleType]:
    yield avalanche_cetl
    for found in pkgutil.walk_packages(avalanche_cetl.__path__, f"{avalanche_cetl.__name__}."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


@functools.cache
def every_name() -> dict[str, Any]:
    """Return the names of all modules, for links from one to another."""
    return {name: thing for module in modules() for name, thing in vars(module).items()}


def public() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Return all public functions, classes and methods, with their names and their modules'."""
    for module in modules():
        for name, thing in list(vars(module).items()):
            if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
                continue
            where = f"{module.__name__}.{name}"
            if isinstance(thing, FunctionType | type):
                yield where, thing, vars(module)
            for own, member in vars(thing).items() if isinstance(thing, type) else ():
                method = getattr(member, "__func__", member)
                if isinstance(method, FunctionType) and not own.startswith("_"):
                    yield f"{where}.{own}", method, vars(module)


def test_docstrings_and_signatures_have_the_same_arguments():
    found = list(public())
    assert len(found) > 500
    told = [f"{name}: {fault}" for name, thing, place in found for fault in faults(thing, place)]
    assert not told, "\n".join(told)


# ------------------------------------------------------------------ the check itself


def of(text: str, arguments: str, **place: Any) -> list[str]:
    """Return the faults of a function with these arguments and this docstring."""
    names: dict[str, Any] = dict(place)
    exec(f"def f({arguments}): pass", names)
    names["f"].__doc__ = text
    return faults(names["f"], names)


class Base:
    """A base.

    :param a: first.
    """

    def __init__(self, a, **options):
        pass


class Derived(Base):
    """Derived.

    :param b: second.
    """

    def __init__(self, b, a=1, **options):
        super().__init__(a, **options)


class Wrong(Base):
    """Says more than it takes.

    :param b: second.
    """


@pytest.mark.parametrize(("text", "arguments", "wanted"), [
    ("Do.", "a, b", []),
    ("Do.\n\n:param a: x.\n:param b: y.", "a, b", []),
    ("Do.\n\n:param a: x.", "a, b", ["b is not described"]),
    ("Do.\n\n:param a: x.\n:param c: y.", "a", ["c is no argument"]),
    ("Do.\n\n:param a: x, with\n    ``b``.", "a, b", []),
    ("Do.\n\n:param a: x.\n:param options: y.", "a, *args, **options", []),
    ("Do.\n\n:param a: x.", "a, *args, **options", []),
    ("Do.\n\n:param a: see :class:`Base`, as ``b`` and\n    ``c``.\n:return: d.", "a, b, c", []),
    ("Do.\n\n:param a: see :class:`Base`, as ``b`` and\n    ``c``.", "a, b", ["c is no argument"]),
    ("Do ``b`` to ``d``.\n\n:param a: x.", "a, b, c, d, e", ["e is not described"]),
    ("Do.\n\n:param b: x.\n\nThe other arguments are those of :class:`Base`.", "a, b", []),
    ("Do.\n\n:param x: see :class:`Base`, as all below but ``b``.\n:param b: y.", "x, a, b", []),
])  # fmt: skip
def test_the_check_sees_what_is_missing_and_what_is_too_much(text, arguments, wanted):
    assert of(text, arguments, Base=Base) == wanted


def test_a_class_is_described_by_its_bases_too():
    assert faults(Base, {}) == faults(Derived, {}) == []
    assert faults(Wrong, {}) == ["b is no argument"]
