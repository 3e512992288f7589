"""The paper's tables, with rivals in the same run: `python -m benchmarks.tables NAME`."""
