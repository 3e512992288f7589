"""`python -m benchmarks.faults [all|kills|trials|files]`.


Kills runs, breaks data and disks, mutates files, and writes what came of it to
``benchmarks/results/faults/``. Needs a system that can fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults.files import new_folder, try_files
from benchmarks.faults.kills import forked, try_kills
from benchmarks.faults.trials import TRIALS
from benchmarks.records import RESULTS, machine, versions, write

FOLDER = RESULTS / "faults"
PACKAGES = ("torch", "avalanche-lib", "avalanche-cetl", "safetensors")
PARTS = ("kills", "trials", "files")


def main() -> None:
    """Run the parts, and write a JSON file each."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.faults")
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--kills", type=int, default=20, help="at random moments")
    parser.add_argument("--checkpoints", type=int, default=16_000, help="mutated checkpoints")
    parser.add_argument("--stores", type=int, default=4_000, help="mutated feature stores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    works: dict[str, Callable[[Path], Any]] = {
        "kills": lambda folder: try_kills(folder, args.kills, args.seed),
        "trials": _try_all,
        "files": lambda folder: try_files(folder, args.checkpoints, args.stores, args.seed),
    }
    for part in PARTS if args.part == "all" else (args.part,):
        folder = new_folder()
        start = time.monotonic()
        try:
            if part == "kills":
                found = works[part](folder)  # forks, so nothing may train in this process before
                _write(args.out / f"{part}.json", part, found, args.seed, start)
            else:
                code = forked(
                    lambda part=part, folder=folder, start=start: _write(
                        args.out / f"{part}.json", part, works[part](folder), args.seed, start
                    )
                )
                if code:
                    raise SystemExit(f"{part} ended with {code}.")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        print((args.out / f"{part}.json").read_text())


def _try_all(folder: Path) -> dict[str, str]:
    warnings.simplefilter("ignore")
    found = {}
    for number, (name, trial) in enumerate(TRIALS.items()):
        own = folder / str(number)
        own.mkdir()
        found[name] = trial(own).replace(str(own), "DIR")
    return found


def _write(path: Path, part: str, found: Any, seed: int, start: float) -> None:
    document = {
        "part": part,
        "seed": seed,
        "found": found,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(PACKAGES),
        "machine": machine("cpu"),
    }
    write(path, document)


if __name__ == "__main__":
    main()
