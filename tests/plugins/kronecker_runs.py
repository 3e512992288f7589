"""Runs of GFIPlugin in a Kronecker basis, over small streams, and what it holds in them."""

import copy

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import GFIPlugin

MODES = {"separate": {}, "online": {"mode": "online", "decay_factor": 0.5}}
PENALTIES = ["proximal", "loss"]
GATE = {"threshold": 0.5, "probability": 0.9}


def kronecker(strength=0.3, mode="separate", **arguments):
    return GFIPlugin(strength, **{**MODES[mode], "basis": "kronecker", **arguments})


def network(classes=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, classes))


def train(model, plugins, experiences, epochs=2, lr=0.1, batch=5):
    torch.manual_seed(1)
    run = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=epochs,
        plugins=plugins,
        evaluator=None,
    )
    for experience in experiences:
        run.train(experience)
    return run


def rows_of(experience):
    dataset = experience.dataset.eval()
    return dataset.collate_fn([dataset[i] for i in range(len(dataset))])[:2]


class Keep(SupervisedPlugin):
    """Keeps what a plugin holds at the beginning of every experience."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.gated, self.bases = plugin, [], []

    def before_training_epoch(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.gated.append(copy.deepcopy(self.plugin.gated))
            self.bases.append(copy.deepcopy(self.plugin.store.basis))
