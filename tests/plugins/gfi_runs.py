"""Runs of GFIPlugin over small streams, what it holds in them, and networks for it."""

import copy
from functools import partial

import naive_gradients
import networks
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import GFIPlugin

MODES = {"separate": {}, "online": {"mode": "online", "decay_factor": 0.5}}
PENALTIES = ["proximal", "loss"]
SAMPLED = {"fisher": "sampled", "normalize": True, "penalty": "proximal"}
GATE = {"threshold": 0.5, "probability": 0.9}
OPEN = {"threshold": 0, "probability": 1}
#: For single precision.
assert_close = partial(naive_gradients.assert_close, rtol=1e-4, atol=1e-8)


def kronecker(strength=0.3, mode="separate", **arguments):
    return GFIPlugin(strength, **{**MODES[mode], **SAMPLED, **arguments})


def network(classes=6, dropout=0.2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, classes))


def growing(masking=False):
    torch.manual_seed(0)
    return networks.growing(6, masking=masking)


def with_heads():
    torch.manual_seed(0)
    return networks.Heads(6, 8, 2)


def train(model, plugins, experiences, epochs=2, lr=0.1, batch=5, optimizer=None, criterion=None):
    torch.manual_seed(1)
    run = Naive(
        model=model,
        optimizer=optimizer or torch.optim.SGD(model.parameters(), lr),
        criterion=criterion or nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=epochs,
        plugins=plugins,
        evaluator=None,
    )
    for experience in experiences:
        run.train(experience)
    return run


def rows_of(experience):
    """Images, labels and task labels of an experience."""
    dataset = experience.dataset.eval()
    return dataset.collate_fn([dataset[i] for i in range(len(dataset))])


class Keep(SupervisedPlugin):
    """Keeps what a plugin holds at the beginning of every experience."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.gated, self.bases = plugin, [], []

    def before_training_epoch(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.gated.append(copy.deepcopy(self.plugin.gated))
            self.bases.append(copy.deepcopy(self.plugin.store.basis))


class Losses(SupervisedPlugin):
    """Keeps the loss before a plugin adds its penalty."""

    def before_backward(self, strategy, *args, **kwargs):
        self.loss = strategy.loss.detach().clone()
