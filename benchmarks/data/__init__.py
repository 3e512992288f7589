"""Data sets of the benchmarks, read from disk and drawn from by one rule."""
