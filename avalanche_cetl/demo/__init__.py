"""`python -m avalanche_cetl demo`: CETL beside its rivals on two real digit sets."""

from avalanche_cetl.demo.digits import jitter, validation_digits
from avalanche_cetl.demo.methods import Comparison
from avalanche_cetl.demo.report import table_lines
from avalanche_cetl.demo.run import run_demo
from avalanche_cetl.demo.settings import Settings
from avalanche_cetl.demo.stream import PermutedDigits

__all__ = [
    "Comparison",
    "PermutedDigits",
    "Settings",
    "jitter",
    "run_demo",
    "table_lines",
    "validation_digits",
]
