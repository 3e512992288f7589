"""
Distillation
============

A large network, the teacher, is good at a task. A small one, the student, has to do the same task
where the large one does not fit. *Soft targets* (Hinton, Vinyals and Dean 2015) let the student
learn the teacher's class probabilities beside the labels.

The teacher often comes from elsewhere, and the data that it has learnt from is gone. Here the
student has five labels of each class, and further images without a label. The teacher's answers for
these are what helps most.
"""

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import avalanche_cetl as ac

SHAPE = (1, 8, 8)

# %%
# The benchmark
# -------------
# Teacher and student have the same classes: a benchmark for distillation. All images are of the
# target domain, and only ``labels_per_class`` of them keep their labels.


def digits(labels_per_class=None):
    """Return a benchmark of optdigits; None: all training images have labels."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, found.target, test_size=0.3, random_state=0)
    sets = (split[0], split[2]), (split[1], split[3])
    return ac.distillation_benchmark(*sets, labels_per_class=labels_per_class)


# In a notebook the last line of a cell is shown. Images without a label have a question mark.
ac.plot_benchmark(digits(labels_per_class=5))

# %%
# One function trains, with any strategy
# --------------------------------------


def trained(strategy_class, model, stream, benchmark, **options):
    """Train a model on a stream, and return its accuracy on the test images."""
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_mb_size=16,
        eval_mb_size=256,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        **options,
    )
    strategy.train(stream)
    return strategy.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


# %%
# Soft targets in two places
# --------------------------
# ``SoftTargets`` works in any Avalanche strategy. In ``Naive`` it reads the labelled images;
# ``source=`` gives the teacher.
#
# Rows without a label need ``CETLStrategy``, whose plugins can read all target rows
# (``rows="target"``). Plain distillation is what it does by default: each step has the loss of the
# labels and those of the plugins. ``SoftTargets`` that you give takes the place of the default's
# own. The teacher runs once: ``with_source_features`` stores what it gives.


def main(teacher_epochs=12, rounds=4):
    """Return the accuracy of the student with all images, and draw all students."""
    everything, benchmark = digits(), digits(labels_per_class=5)
    print(benchmark.summary())
    torch.manual_seed(0)
    teacher = ac.CICNN(10, SHAPE, width=0.25)
    epochs = {"train_epochs": teacher_epochs}
    found = {"teacher": trained(Naive, teacher, everything.train_stream, benchmark, **epochs)}
    source = ac.ModuleEncoder(teacher, input_shape=SHAPE)  # frozen from here on

    # A round below has as many steps as twenty passes over the labelled images.
    epochs = {"train_epochs": 20 * rounds}
    for name, plugins in {
        "student": [],
        "soft targets, labelled images": [ac.SoftTargets(temperature=4, source=source)],
    }.items():
        torch.manual_seed(0)
        epochs["plugins"] = plugins
        student = ac.CICNN(10, SHAPE, width=0.125)
        found[name] = trained(Naive, student, benchmark.labelled_stream, benchmark, **epochs)

    torch.manual_seed(0)
    stored = ac.with_source_features(benchmark, source)
    model = ac.CoupledModel.build(source, ac.CICNN(10, SHAPE, width=0.125), SHAPE)
    options = {
        "plugins": [ac.SoftTargets(temperature=4, rows="target")],
        "train_epochs": rounds,
    }
    name = "soft targets, all images"
    found[name] = trained(ac.CETLStrategy, model, stored.train_stream, benchmark, **options)

    _, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
    bars = axes.barh(list(found), [100 * value for value in found.values()], color="#56B4E9")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="accuracy on held-out digits, %", xlim=(0, 108))
    axes.invert_yaxis()
    return found["soft targets, all images"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits")

# %%
# What to take from it
# --------------------
# On the few labelled images the teacher's answers say little more than the labels do. Its answers
# for the other images help. Where there are no further images, make some: ``with_mixed_images``
# adds mixtures of the images that are there. In :doc:`Table 4 </results/paper>` soft targets close
# a small part of the gap between student and teacher, and with mixed images the whole of it. On
# small sets of simple images mixtures may not help: measure it.
#
# :doc:`/methods/soft_targets` says which temperature and weight to start with.
