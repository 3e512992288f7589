"""SIGKILL at random moments and at the worst ones, then go on, and compare bit by bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from avalanche_cetl import CETLPlugin
from avalanche_cetl.allocation import Importance
from benchmarks.faults.subject import whole_run

FILES = ("final.safetensors", "metrics.json", "log.txt")


def die() -> None:
    """End this process as the system does when memory runs out: at once, with no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], None], after: float | None = None) -> int:
    """Run in a process of its own, killed after some seconds; 0, or the signal or code it ended by.

    The calling process must not have run a backward pass, whose threads do not survive a fork.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if after is not None:
        end = time.monotonic() + after
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ------------------------------------------------------------------ the worst moments


class _InStage(CETLPlugin):
    """Dies after some steps of a stage."""

    def __init__(self, stage: str, steps: int):
        super().__init__()
        self.stage, self.left = stage, steps

    def after_step(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count stages 1 and 2."""
        self._count(strategy)

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Count stage 3."""
        self._count(strategy)

    def _count(self, strategy: Any) -> None:
        if strategy.stage.value == self.stage:
            self.left -= 1
            if self.left == 0:
                die()

    def state_dict(self) -> dict[str, Any]:
        """Nothing that training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing."""


def _in_stage(stage: str, steps: int) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        # Stands behind the plugins of the run that goes on, which has one that never fires.
        whole_run(folder, [_InStage(stage, steps)])

    return run


def _in_call(owner: Any, name: str, calls: int, after: bool = False) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        original, left = getattr(owner, name), [calls]

        def deadly(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                die()
            result = original(*args, **kwargs)
            if left[0] == 0:
                die()
            return result

        setattr(owner, name, deadly)
        whole_run(folder, [_InStage("never", 1)])

    return run


def moments() -> dict[str, Callable[[Path], None]]:
    """Runs that kill themselves, by the moment."""
    return {
        "in the warm-up": _in_stage("stage 1", 3),
        "in stage 1 of a round": _in_stage("stage 1", 15),
        "in stage 2": _in_stage("stage 2", 9),
        "in stage 3": _in_stage("stage 3", 16),
        "while GFI is measured": _in_call(Importance, "__init__", 5),
        "before a checkpoint reaches the disk": _in_call(os, "fsync", 3),
        "between a checkpoint and its name": _in_call(os, "replace", 3),
        "right after a checkpoint got its name": _in_call(os, "replace", 3, after=True),
        "while an old checkpoint is removed": _in_call(os, "unlink", 1),
    }


# ------------------------------------------------------------------ the trial


def try_kills(folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Kill runs at random moments and at the worst ones; let each go on, and compare.

    :param count: of random kills.
    :return: what happened, for each kill: rounds that had to be run again, whether the end was
        the same.
    """
    torch.set_num_threads(1)

    def whole() -> None:
        whole_run(folder / "whole", [_InStage("never", 1)])

    start = time.monotonic()
    assert forked(whole) == 0, "the run fails without being killed"
    length = time.monotonic() - start
    want = {name: (folder / "whole" / name).read_bytes() for name in FILES}
    generator = random.Random(seed)
    found = []
    for number in range(count):
        own, code = folder / f"random-{number}", 0
        while code == 0:  # a run may be faster than the first one, and done before it is killed
            shutil.rmtree(own, ignore_errors=True)
            share = generator.random()
            code = forked(lambda own=own: whole_run(own, [_InStage("never", 1)]), share * length)
        found.append({"when": f"{share:.2f} of the run", **_go_on(own, code, want)})
    for name, run in moments().items():
        own = folder / name.replace(" ", "-")
        code = forked(lambda run=run, own=own: run(own))
        found.append({"when": name, **_go_on(own, code, want)})
    return {
        "random": count,
        "at chosen moments": len(found) - count,
        "killed": sum(one["killed"] for one in found),
        "same end": sum(one["same"] for one in found),
        "kills": found,
    }


def _go_on(folder: Path, code: int, want: dict[str, bytes]) -> dict[str, Any]:
    killed = code == -signal.SIGKILL
    saved = len(list((folder / "checkpoints").glob("checkpoint-*"))) if killed else 0
    again = forked(lambda: whole_run(folder, [_InStage("never", 1)])) if killed else code
    same = again == 0 and all((folder / name).read_bytes() == want[name] for name in FILES)
    shutil.rmtree(folder, ignore_errors=True)
    return {"killed": killed, "checkpoints": saved, "same": same}
