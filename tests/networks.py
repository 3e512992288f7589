"""Small networks that tests share."""

import torch
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
