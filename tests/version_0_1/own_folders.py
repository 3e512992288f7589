"""Your own images: python own_folders.py DIR, with DIR/{train,test}/CLASS/*.png (or .jpg)."""

import sys

import torch
from torchvision.transforms import v2

import avalanche_cetl as ac


def main(folder, rounds=20, size=64, encoder="tf_efficientnet_lite0", weights="package"):
    torch.manual_seed(0)
    benchmark = ac.transfer_benchmark(
        f"{folder}/train",
        f"{folder}/test",
        image_shape=(3, size, size),
        train_transform=v2.RandomHorizontalFlip(),
    )
    print(benchmark.summary())
    ac.plot_benchmark(benchmark).savefig("images.png")
    source = ac.TimmEncoder(encoder, pretrained=weights is not None, weights=weights)
    benchmark = ac.with_source_features(benchmark, source, views=2)  # S runs once, before training

    target = ac.ResNet26(len(benchmark.classes))
    model = ac.CoupledModel.build(source, target, (3, size, size))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cetl = ac.CETLStrategy(
        model=model, optimizer=optimizer, train_mb_size=32, train_epochs=rounds, eval_mb_size=64
    )
    cetl.train(benchmark.train_stream)
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main(sys.argv[1]):.1f} % of the test images")
