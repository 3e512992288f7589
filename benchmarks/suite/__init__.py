"""What a user gets: defaults and presets beside every single ingredient and the rivals, on tasks
that nothing was tuned on.

``python -m benchmarks.suite --data-root DIR``. The protocol is in :mod:`benchmarks.suite.tasks`,
the rows are in :mod:`benchmarks.suite.rows`.
"""
