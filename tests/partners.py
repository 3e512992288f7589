"""Processes that a test runs beside its own, waited for by their progress and not by the clock.

A server imports the package once and forks every partner, so that a partner starts in
milliseconds; multiprocessing keeps one server for each process of the test run. Partners may take
as long as a busy machine makes them take: a test fails when together they use no processor time
for long, because each of them then waits for something that does not come.
"""

import contextlib
import functools
import multiprocessing
import os
import runpy
import sys
import textwrap
import warnings
from typing import NamedTuple

import psutil

#: Seconds in which partners have to use WORK seconds of processor time together.
PATIENCE = 60.0
#: A pair that waits for what does not come uses 0.3: it looks again and again whether it is there.
WORK = 1.0
#: Seconds between two looks.
STEP = 0.02


@functools.cache
def server():
    """Return the server, which a process that only hands tests to others does not need."""
    import avalanche_cetl

    context = multiprocessing.get_context("forkserver")
    # The modules of all public names: importing the package alone imports none of them.
    context.set_forkserver_preload(
        sorted({getattr(avalanche_cetl, name).__module__ for name in avalanche_cetl.__all__})
    )
    return context


class Ended(NamedTuple):
    """How a partner ended: exit code (minus the signal that killed it), and what it wrote."""

    code: int
    output: str
    errors: str


class Partners:
    """The partners of one test.

    :param folder: where their scripts and what they write are kept.
    :param patience: seconds that they may stand still, as PATIENCE.
    """

    def __init__(self, folder, patience=PATIENCE):
        self.folder, self.patience = folder, patience
        self.processes = []

    def start(self, script, *arguments, **environment):
        """Run a script in a process of its own.

        :param arguments: what ``sys.argv[1:]`` is in it.
        :param environment: variables that it finds in ``os.environ`` besides those of the server.
        :return: the process, of :mod:`multiprocessing`.
        """
        home = self.folder / f"partner{len(self.processes)}"
        home.mkdir(parents=True)
        (home / "script.py").write_text(textwrap.dedent(script))
        process = server().Process(
            target=_run, args=(home, [str(one) for one in arguments], environment)
        )
        process.start()
        self.processes.append(process)
        return process

    def until(self, condition):
        """Wait until a condition holds, which is asked for again and again.

        :raises AssertionError: when the partners stand still, or end, and it does not hold; those
            that still run are killed.
        """
        waited, before = 0.0, self._work()
        while True:
            alive = [process for process in self.processes if process.is_alive()]
            if condition():
                return
            if not alive:
                raise AssertionError(f"all processes ended too early.\n{self._written()}")
            alive[0].join(STEP)
            waited += STEP  # of this process's own: a machine that sleeps costs no patience
            if waited >= self.patience:
                now = self._work()
                if now - before < WORK:
                    self.kill()
                    raise AssertionError(f"the processes stand still.\n{self._written()}")
                waited, before = 0.0, now

    def finish(self):
        """Wait until all have ended.

        :return: how, in the order of their starts.
        :raises AssertionError: when they stand still; they are killed then.
        """
        self.until(lambda: not any(process.is_alive() for process in self.processes))
        return [
            Ended(process.exitcode, *self._texts(number))
            for number, process in enumerate(self.processes)
        ]

    def succeed(self):
        """Wait until all have ended, without an error.

        :return: what each wrote to its standard output.
        :raises AssertionError: with what they wrote, when one failed.
        """
        ended = self.finish()
        assert all(one.code == 0 for one in ended), self._written()
        return [one.output for one in ended]

    def kill(self):
        """End all that still run, and the processes that they started."""
        for process in self.processes:
            for one in _family(process.pid):
                with contextlib.suppress(psutil.Error):
                    one.kill()
            process.join()

    def _work(self):
        return sum(_seconds(process.pid) for process in self.processes)

    def _texts(self, number):
        home = self.folder / f"partner{number}"
        return [(home / name).read_text(errors="replace") for name in ("output", "errors")]

    def _written(self):
        parts = []
        for number, process in enumerate(self.processes):
            output, errors = self._texts(number)
            parts.append(f"process {number}, exit code {process.exitcode}:")
            parts += [output[-2000:], errors[-4000:]]
        return "\n".join(parts)


def _run(home, arguments, environment):
    import torch

    for descriptor, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.update(environment)
    # What this process starts, as loaders do, it starts as any process, not by the server.
    multiprocessing.set_start_method(None, force=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.argv = [str(home / "script.py"), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _family(pid):
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _seconds(pid):
    """Processor time of a process and of all that it started, those that have ended included."""
    found = 0.0
    for one in _family(pid):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            found += times.user + times.system + times.children_user + times.children_system
    return found
