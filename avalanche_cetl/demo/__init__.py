"""`python -m avalanche_cetl demo`: CETL beside its rivals on two real digit sets."""

from avalanche_cetl.demo.run import run_demo, table_lines

__all__ = ["run_demo", "table_lines"]
