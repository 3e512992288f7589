"""Many runs side by side: one process each, with its share of the cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch
from tqdm import tqdm


def run_all(work: Callable[..., str], tasks: Sequence[tuple[Any, ...]], processes: int) -> None:
    """Call ``work(*task)`` for every task, with a bar that shows what it returns.

    :param work: a function at the top of a module; its result is a line about the run.
    :param processes: at once; 1 runs in this process. Each has its share of the threads.
    """
    bar = tqdm(total=len(tasks), unit="run", dynamic_ncols=True)

    def show(line: str) -> None:
        bar.write(line)
        bar.update()

    with bar:
        if processes <= 1:
            for task in tasks:
                show(work(*task))
            return
        threads = max(1, (os.cpu_count() or 1) // processes)
        pool = ProcessPoolExecutor(
            processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
        )
        with pool:
            futures = [pool.submit(work, *task) for task in tasks]
            try:
                for future in as_completed(futures):
                    show(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
