"""Errors that several rooms raise."""

from __future__ import annotations


class NonFiniteLossError(ValueError):
    """A training loss became NaN or infinite; the message names loss, stage and epoch."""
