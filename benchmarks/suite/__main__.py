"""Run the suite: ``python -m benchmarks.suite --data-root DIR``.

One process at a time: two would write the same files of the development tasks.
"""

from __future__ import annotations

import argparse
import os

from benchmarks.suite.page import render
from benchmarks.suite.rows import ROWS
from benchmarks.suite.runs import S_ITSELF, TEST, VALIDATION, run_task, try_strengths
from benchmarks.suite.tasks import TASKS


def main(arguments: list[str] | None = None) -> None:
    """Run tasks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    parser.add_argument("--tasks", default=";".join(TASKS), help="names, separated by ;")
    parser.add_argument("--rows", default="", help="names, separated by ;")
    parser.add_argument("--part", choices=(TEST, VALIDATION), default=TEST)
    parser.add_argument("--render", action="store_true", help="write the page alone")
    given = parser.parse_args(arguments)
    if not given.render:
        if given.data_root is None:
            parser.error("--data-root, or CETL_DATA, names the folder of the data sets.")
        rows = tuple(one for one in given.rows.split(";") if one)
        names = given.tasks.split(";")
        trained = [row for row in rows or ROWS if row != S_ITSELF]
        tasks = [TASKS[name] for name in names]
        try_strengths(given.data_root, [r for r in trained if any(map(ROWS[r].fits, tasks))])
        for name in names:
            run_task(name, given.data_root, rows, given.part)
    render()


if __name__ == "__main__":
    main()
