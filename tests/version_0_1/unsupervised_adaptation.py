"""Adaptation without target labels: MNIST has labels, UCI's optdigits has images only."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive

import avalanche_cetl as ac


def main(source_epochs=5, rounds=3):
    torch.manual_seed(0)
    benchmark = ac.paper_benchmark("digits-mini", root=".")  # out of installed packages
    pretrained = ac.CICNN(10, (1, 8, 8), width=0.5)
    optimizer = torch.optim.Adam(pretrained.parameters(), 1e-3)
    options = {"train_mb_size": 64, "train_epochs": source_epochs, "evaluator": None}
    Naive(model=pretrained, optimizer=optimizer, **options).train(benchmark.source_stream)

    source = ac.ModuleEncoder(pretrained, input_shape=(1, 8, 8))
    model = ac.CoupledModel.build(source, ac.CICNN(10, (1, 8, 8), width=0.25), (1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    # Scores that see no target label, to choose settings by, beside the accuracy they predict.
    metrics = EvaluationPlugin(
        accuracy_metrics(stream=True), ac.validator_metrics(), ac.bound_metrics()
    )
    options = {"train_mb_size": 64, "train_epochs": rounds, "eval_mb_size": 256}
    cetl = ac.CETLStrategy(model=model, optimizer=optimizer, evaluator=metrics, **options)
    cetl.train(benchmark.train_stream)
    found = cetl.eval(benchmark.test_stream)
    for name, value in found.items():
        print(f"{name.split('/')[0]:32} {value:.3f}")
    return found["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    main()
