"""
A stream of tasks
=================

A network learns one task after another, and old images are gone. ``GFIPlugin`` holds what the old
tasks need. It takes the place of Avalanche's ``EWCPlugin``, in any strategy.

The tasks: digits whose 64 pixels are shuffled, each time in another way. So the tasks have the same
classes, and every pixel in another place.
"""

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, EWCPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import avalanche_cetl as ac

# %%
# The stream
# ----------
# A list of data sets becomes a stream of as many experiences.


def permuted_digits(tasks):
    """Return a stream of shuffled digits."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, found.target, test_size=0.3, random_state=0)
    draw = torch.Generator().manual_seed(0)
    orders = [torch.randperm(64, generator=draw) for _ in range(tasks)]
    trains, tests = (
        [(split[k].flatten(1)[:, order].view(-1, 1, 8, 8), split[k + 2]) for order in orders]
        for k in (0, 1)
    )
    return ac.transfer_benchmark(trains, tests)


# In a notebook the last line of a cell is shown.
ac.plot_benchmark(permuted_digits(2))


# %%
# Four ways
# ---------
# ``Naive`` alone; Avalanche's EWC; ``GFIPlugin`` weight by weight, which gates the importance by
# what the old and the new task share; and ``GFIPlugin`` in the Kronecker basis, direction by
# direction, with its defaults. Nothing else differs. Strengths of different methods cannot be
# compared: choose those of EWC and of the diagonal basis on a stream that you do not report.
# ``GFIPlugin()`` has nothing to choose.

METHODS = {
    "Naive": lambda: [],
    "EWC": lambda: [EWCPlugin(100.0)],
    "GFIPlugin, diagonal": lambda: [ac.GFIPlugin(1.0, basis="diagonal")],
    "GFIPlugin()": lambda: [ac.GFIPlugin()],
}


def learnt(benchmark, plugins, epochs):
    """Return the mean accuracy over the tasks so far, after each of them."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    strategy = Naive(
        model=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-3),
        plugins=plugins,
        train_mb_size=32,
        train_epochs=epochs,
        eval_mb_size=512,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    means = []
    for number, experience in enumerate(benchmark.train_stream, 1):
        strategy.train(experience)
        found = strategy.eval(benchmark.test_stream[:number])
        means.append(found["Top1_Acc_Stream/eval_phase/test_stream/Task000"])
    return means


# %%
# What is left of the old tasks
# -----------------------------


def main(tasks=5, epochs=6):
    """Return the mean accuracy over all tasks with ``GFIPlugin()``, and draw all methods."""
    benchmark = permuted_digits(tasks)
    found = {name: learnt(benchmark, make(), epochs) for name, make in METHODS.items()}

    _, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    colors = ("#555555", "#E69F00", "#56B4E9", "#009E73")
    for (name, means), color, marker in zip(found.items(), colors, "osD^", strict=True):
        places = range(1, tasks + 1)
        axes.plot(places, [100 * m for m in means], color=color, marker=marker, label=name)
    axes.set(xlabel="tasks learnt", ylabel="mean accuracy over them, %", xticks=range(1, tasks + 1))
    axes.legend(frameon=False)
    return found["GFIPlugin()"][-1]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % over all tasks, with GFIPlugin()")

# %%
# What to take from it
# --------------------
# ``GFIPlugin()`` without an argument measures in the Kronecker basis, and that makes the
# difference. :doc:`/results/continual` has longer streams, photographs, five seeds, more rivals,
# replay, and the strengths that were chosen; not everywhere is the gain as large.
# :doc:`/concepts/kronecker` says what the basis is.
#
# For transfer along a stream, with a source network, give the plugin to ``CETLStrategy``:
# :doc:`/short_scripts` has a script for continual transfer.
