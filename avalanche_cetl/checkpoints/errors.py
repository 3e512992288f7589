"""The error of checkpoints."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """Raised when a checkpoint cannot be written, is damaged, or belongs to something else."""
