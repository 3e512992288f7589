"""Small data made here, so that no test downloads anything."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
# Processes that share cores and have several threads each wait for one another.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def make_digits(count=60, classes=3, size=8, seed=0, shift=0.0):
    """Images of bars whose position tells the class, with noise: easy and quick to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = 0.15 * torch.rand(count, 1, size, size, generator=generator) + shift
    for i, label in enumerate(labels.tolist()):
        row = 1 + 2 * label
        images[i, 0, row : row + 2, 1:-1] += 0.7
    return images.clamp(0, 1), labels


@pytest.fixture
def digits():
    return make_digits


@pytest.fixture
def data_root():
    """The optional folder with real data sets; tests that need it skip without it."""
    root = os.environ.get("CETL_DATA")
    if not root or not os.path.isdir(root):
        pytest.skip("CETL_DATA is not set: this test needs real data sets on disk")
    return root


PRELUDE = """
import sys, datetime, torch
from torch import nn, distributed
from torch.nn import functional as F
import avalanche_cetl  # before init_process_group: Avalanche makes a logger when imported
torch.set_num_threads(1)
rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2,
    timeout=datetime.timedelta(seconds=60),
)
world = distributed.group.WORLD
"""


@pytest.fixture
def two_processes(tmp_path):
    """Run a script in two processes of one gloo group; give each one's status and output."""

    def run(body):
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + textwrap.dedent(body))
        command = [sys.executable, "-W", "ignore", str(script)]
        both = [
            subprocess.Popen(
                [*command, str(rank), str(tmp_path / "store")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        done = [process.communicate(timeout=180) for process in both]
        return [(p.returncode, out, err) for p, (out, err) in zip(both, done, strict=True)]

    return run
