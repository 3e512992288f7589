"""Public names of a package that are imported when they are first read (PEP 562)."""

from __future__ import annotations

import ast
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def attach_stub(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names come late.

    The stub beside its ``__init__.py``, ``__init__.pyi``, is the only list of these names. Type
    checkers and editors read the stub, and so does this function: what it imports from where, and
    its ``__all__``. Importing the package imports none of them. The modules of the package that
    the stub imports from are attributes as well, which they would be after those imports.

    :param package: its name, ``__name__`` in its ``__init__.py``.
    :raises FileNotFoundError: when there is no stub.
    """
    origins: dict[str, str] = {}
    public: list[str] = []
    for node in ast.parse(pkgutil.get_data(package, "__init__.pyi") or b"").body:
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {name.name: node.module for name in node.names}
        elif isinstance(node, ast.Assign):
            public = ast.literal_eval(node.value)
    modules = {origin.removeprefix(f"{package}.").split(".")[0] for origin in origins.values()}

    def __getattr__(name: str) -> Any:
        if name in origins:
            value = getattr(import_module(origins[name]), name)
        elif name in modules:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[package],
            )
        setattr(sys.modules[package], name, value)  # the next reader finds it at once
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *origins, *modules})

    return __getattr__, __dir__, public
