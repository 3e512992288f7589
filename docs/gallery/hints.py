"""FitNets hints: a hidden layer of the student learns to predict one of the teacher."""

import torch
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import avalanche_cetl as ac


def main(teacher_epochs=15, rounds=10):
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    split = train_test_split(images, digits.target, test_size=0.3, random_state=0)
    benchmark = ac.distillation_benchmark((split[0], split[2]), (split[1], split[3]))

    teacher = ac.CICNN(10, (1, 8, 8), width=0.5)
    optimizer = torch.optim.Adam(teacher.parameters(), 1e-3)
    options = {"train_mb_size": 32, "train_epochs": teacher_epochs, "evaluator": None}
    Naive(model=teacher, optimizer=optimizer, **options).train(benchmark.train_stream)

    source = ac.ModuleEncoder(teacher, input_shape=(1, 8, 8))
    model = ac.CoupledModel.build(source, ac.CICNN(10, (1, 8, 8), width=0.0625), (1, 8, 8))
    cetl = ac.CETLStrategy(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        variant="gfi",  # with the decoder, whose hidden layers DecoderHints compares
        plugins=[
            ac.FitNetsHints(target_layer="features.3", source_layer="features.3"),
            ac.DecoderHints(0.3),
        ],
        train_mb_size=32,
        train_epochs=rounds,
        eval_mb_size=256,
    )
    cetl.train(benchmark.train_stream)
    return cetl.eval(benchmark.test_stream)["Top1_Acc_Stream/eval_phase/test_stream/Task000"]


if __name__ == "__main__":
    print(f"{100 * main():.1f} % of the held-out digits")
