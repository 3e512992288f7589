"""Checkpoints: exact, safe to load, written in one step."""

from avalanche_cetl.checkpoints.adapters import register_state_adapter
from avalanche_cetl.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from avalanche_cetl.checkpoints.codec import CheckpointError
from avalanche_cetl.checkpoints.plugin import CheckpointPlugin

__all__ = [
    "CheckpointError",
    "CheckpointPlugin",
    "Progress",
    "load_checkpoint",
    "register_state_adapter",
    "save_checkpoint",
]
