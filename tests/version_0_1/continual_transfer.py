"""Continual transfer: three targets one after the other, with what is forgotten of each."""

import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from avalanche_cetl import CICNN, CETLStrategy, CoupledModel, ModuleEncoder, transfer_benchmark


def main(rounds=5):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, digits.target, test_size=0.3, random_state=0)
    views = (lambda x: x, lambda x: 1 - x, lambda x: x.rot90(1, (2, 3)))  # as is, negative, turned
    trains, tests = ([(v(split[k]), split[k + 2]) for v in views] for k in (0, 1))
    benchmark = transfer_benchmark(trains, tests)

    source = ModuleEncoder(CICNN(10, (1, 8, 8), width=0.25), input_shape=(1, 8, 8))  # yours here
    model = CoupledModel.build(source, CICNN(10, (1, 8, 8), width=0.25), (1, 8, 8))
    cetl = CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        plugins=[ReplayPlugin(mem_size=200)],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), forgetting_metrics(stream=True)),
        train_mb_size=32,
        train_epochs=rounds,
        eval_mb_size=256,
    )
    for experience in benchmark.train_stream:
        cetl.train(experience)
        found = cetl.eval(benchmark.test_stream)
    return found["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits, over all three")
