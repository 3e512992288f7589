"""The order of the rooms: who may read whom, and what nobody reads."""

from __future__ import annotations

import ast
import importlib
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from torch import nn

PACKAGE = Path(__file__).parents[1] / "avalanche_cetl"
#: A room may import from those before it. The last ones are the command and the public names.
ORDER = (
    "common",
    "information",
    "encoders",
    "models",
    "scenarios",
    "features",
    "allocation",
    "plugins",
    "training",
    "evaluation",
    "checkpoints",
    "demo",
    "__main__",
    "",
)
#: The same within training.
ORDER_OF_TRAINING = (
    "progress",
    "meters",
    "checks",
    "group",
    "engine",
    "networks",
    "stages",
    "stage_checks",
    "variants",
    "data",
    "choice",
    "presets",
    "recipe",
    "optimizers",
    "host",
    "shown",
    "step",
    "rounds",
    "options",
    "parts",
    "gfi",
    "ridge",
    "estimate",
    "strategy",
    "",
)
WITHOUT_AVALANCHE = ("common", "information", "encoders", "models", "allocation")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def text_of(path: Path) -> str:
    """A module's text, and that of the stub beside it: what a package imports late is there."""
    stub = path.with_suffix(".pyi")
    return path.read_text() + (stub.read_text() if stub.exists() else "")


MODULES = {module_of(path): ast.parse(text_of(path)) for path in PACKAGE.rglob("*.py")}


@cache
def imported(tree: ast.AST) -> list[tuple[str, str]]:
    """All imports, wherever they stand: a module and a name of it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            found += [(node.module, one.name) for one in node.names]
        elif isinstance(node, ast.Import):
            found += [(one.name, "") for one in node.names]
    return found


def edges() -> dict[str, set[str]]:
    """The modules of the package that each of them imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in MODULES.items():
        for source, name in imported(tree):
            whole = f"{source}.{name}"
            if source.split(".")[0] == PACKAGE.name:
                found[module].add(whole if whole in MODULES else source)
    return found


def test_every_room_has_its_place_in_the_order():
    assert {room_of(module) for module in MODULES} == set(ORDER)


def test_imports_point_down_the_order_of_rooms():
    upward = [
        f"{module} -> {other}"
        for module, others in edges().items()
        for other in others
        if ORDER.index(room_of(other)) > ORDER.index(room_of(module))
    ]
    assert not upward


def test_imports_within_training_point_down_its_order():
    inside = {m: m.split(".")[2] if m.count(".") > 1 else "" for m in MODULES}
    inside = {m: name for m, name in inside.items() if room_of(m) == "training"}
    assert set(inside.values()) == set(ORDER_OF_TRAINING)
    upward = [
        f"{module} -> {other}"
        for module, others in edges().items()
        for other in others
        if module in inside
        and other in inside
        and ORDER_OF_TRAINING.index(inside[other]) > ORDER_OF_TRAINING.index(inside[module])
    ]
    assert not upward


def test_no_two_modules_import_each_other_in_a_circle():
    left = {module: set(others) for module, others in edges().items()}
    for module in MODULES:
        left.setdefault(module, set())
    while ends := {module for module, others in left.items() if not others & left.keys()}:
        left = {module: others for module, others in left.items() if module not in ends}
    assert not left, "in a circle, or above one"


@pytest.mark.parametrize("room", WITHOUT_AVALANCHE)
def test_mathematics_and_networks_do_without_avalanche(room):
    readers = [
        module
        for module, tree in MODULES.items()
        for source, _ in imported(tree)
        if room_of(module) == room and source.split(".")[0] == "avalanche"
    ]
    assert not readers


def test_no_public_name_hides_a_module_of_its_package():
    hidden = []
    for module in sorted(MODULES):
        package, _, name = module.rpartition(".")
        if package and name != "__main__":
            importlib.import_module(module)
            if getattr(importlib.import_module(package), name) is not sys.modules[module]:
                hidden.append(module)
    assert not hidden


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> set[str]:
    """Private names that a module gives to functions, classes, constants and attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if private(name)}


def test_no_private_name_of_one_room_is_read_in_another():
    own: dict[str, set[str]] = defaultdict(set)
    torchs = vars(nn.Module()).keys()
    for module, tree in MODULES.items():
        own[room_of(module)] |= defined(tree) - torchs
    read = []
    for module, tree in MODULES.items():
        room = room_of(module)
        others = set().union(*(names for other, names in own.items() if other != room))
        names = [name for source, name in imported(tree) if room_of(source) != room]
        names += [
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
        ]
        read += [(module, name) for name in names if private(name) and name in others - own[room]]
    assert not read


def test_only_the_contract_asks_what_a_strategy_has():
    asked = [
        f"{module}:{node.lineno}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in ("strategy", "host")
        and module != "avalanche_cetl.plugins.base"
    ]
    assert not asked


def test_files_are_short():
    lengths = {
        module: len((PACKAGE.parent / path).read_text().splitlines())
        for path in PACKAGE.rglob("*.py")
        for module in [module_of(path)]
    }
    assert max(lengths.values()) <= 400
    assert lengths["avalanche_cetl.training.strategy"] < 300


def test_the_strategy_s_constructor_is_short():
    tree = MODULES["avalanche_cetl.training.strategy"]
    (init,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    assert init.end_lineno is not None and init.end_lineno - init.body[0].lineno + 1 < 50


def test_benchmarks_read_public_names_only():
    files = (PACKAGE.parent / "benchmarks").rglob("*.py")
    deep = [
        f"{path.name}: {source}.{name}"
        for path in files
        for source, name in imported(ast.parse(path.read_text()))
        if source.split(".")[0] == PACKAGE.name and (source.count(".") > 1 or private(name))
    ]
    assert not deep


def test_docstrings_begin_with_what_a_thing_is_or_does():
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    vague = [
        f"{module}: {docstring.splitlines()[0]}"
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node))
        if docstring.startswith(("Give ", "Gives "))
    ]
    assert not vague
