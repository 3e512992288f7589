"""Optimisers of the same class and settings as another one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


def optimizer_like(template: Optimizer, groups: Iterable[dict[str, Any]]) -> Optimizer:
    """Return an optimiser of the same class for other parameters, with moments of its own.

    :param template: an optimiser. Of its defaults only those are handed on that its constructor
        takes: some optimisers, as AdamW, set others themselves.
    :param groups: parameter groups, with the settings that they have; a group may have no
        parameters.
    """
    kind = type(template)
    accepted = inspect.signature(kind.__init__).parameters
    return kind(groups, **{k: v for k, v in template.defaults.items() if k in accepted})
