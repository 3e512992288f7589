"""Small networks that tests share."""

import torch
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import nn


class Of(nn.Module):
    """Layers by name, and a forward pass given as a function of them and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def growing(inputs=64, hidden=8, outputs=2, masking=True):
    """A head that grows with the classes of the stream."""
    return Of(
        lambda m, x: m.head(m.trunk(x)),
        trunk=nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh()),
        head=IncrementalClassifier(hidden, outputs, masking=masking),
    )


class Heads(MultiTaskModule):
    """A head for each task.

    Masks of units fail on benchmarks made of data sets (Avalanche 0.6 indexes by a set).
    """

    def __init__(self, inputs=64, hidden=12, outputs=3, masking=False):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh())
        self.classifier = MultiHeadClassifier(hidden, outputs, masking=masking)

    def forward(self, x, task_labels):
        return self.classifier(self.trunk(x), task_labels)


def normalised_convolution():
    """A classifier of 8 x 8 images: a convolution, its BatchNorm, and a hidden layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )
