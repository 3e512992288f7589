"""How objects show themselves, in a console and in a notebook."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

#: Characters of a value's own text that are shown; of longer ones, its class.
LONGEST = 60


class Described:
    """Shows itself as its class, with the arguments that differ from their defaults.

    An argument counts as what the attribute of its name holds now; one without such an attribute is
    left out. In a notebook it is a table.
    """

    def argument(self, name: str, default: Any) -> Any:
        """Return what is shown of an argument of the constructor; its default: nothing.

        An attribute that cannot be read, because the object is half made, is not shown.
        """
        try:
            return getattr(self, name, default)
        except Exception:
            return default

    def arguments_shown(self) -> dict[str, Any]:
        """Return what is shown, by name."""
        shown = {}
        for name, argument in inspect.signature(type(self)).parameters.items():
            value = self.argument(name, argument.default)
            own_method = getattr(value, "__self__", None) is self
            default = argument.default
            # Tensors and arrays have no one truth; they are no defaults.
            same = value is default or (type(value) is type(default) and value == default)
            if not own_method and not same:
                shown[name] = value
        return shown

    def __repr__(self) -> str:
        shown = (f"{name}={_short(value)}" for name, value in self.arguments_shown().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_html_(self) -> str:
        rows = [(name, _short(value)) for name, value in self.arguments_shown().items()]
        return html_table(rows, type(self).__name__)


class Text(str):
    """A text of several lines that a console shows as it prints."""

    def __repr__(self) -> str:
        return str(self)


def html_table(
    rows: Iterable[Sequence[str]], caption: str, heads: Sequence[str] = ("argument", "value")
) -> str:
    """Return rows of text as a table of HTML."""
    cells = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    title = f"<caption>{escape(caption)}</caption>"
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>"


def _short(value: Any) -> str:
    """Return a value's text; its class where it is long, or names a place in memory."""
    if type(value) in (list, tuple):
        text = ", ".join(map(_short, value))
        end = "," if len(value) == 1 else ""
        return f"[{text}]" if type(value) is list else f"({text}{end})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_short(one)}" for key, one in value.items()) + "}"
    if inspect.isroutine(value) or isinstance(value, type):
        return value.__name__
    text = " ".join(repr(value).split())
    if isinstance(value, Described) or not (len(text) > LONGEST or " at 0x" in text):
        return text
    return f"{type(value).__name__}(...)"
