"""A timm vision transformer as source network and a timm MobileNet as target."""

import timm
import torch
from torchvision.datasets import CIFAR10

from avalanche_cetl import CETLStrategy, CoupledModel, TimmEncoder, transfer_benchmark


def main(
    sets=None,
    source="vit_tiny_patch16_224",
    target="mobilenetv3_small_050",
    labels_per_class=100,
    rounds=20,
    pretrained=True,
):
    torch.manual_seed(0)
    if sets is None:
        sets = [CIFAR10("data", train=part, download=True) for part in (True, False)]
    benchmark = transfer_benchmark(*sets, labels_per_class=labels_per_class)

    encoder = TimmEncoder(source, pretrained=pretrained)  # resizes and normalises as it needs
    network = timm.create_model(target, num_classes=10)
    model = CoupledModel.build(encoder, network, (3, 32, 32))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cetl = CETLStrategy(
        model=model, optimizer=optimizer, train_mb_size=64, train_epochs=rounds, eval_mb_size=256
    )
    cetl.train(benchmark.train_stream)
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the test images")
