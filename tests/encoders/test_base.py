import pytest
import torch

from avalanche_cetl import Encoder


def test_a_user_adds_an_encoder_in_a_few_lines():
    class Mean(Encoder):
        def __init__(self):
            super().__init__()
            self.dim = 3
            self.freeze()

        def encode(self, x):
            return x.mean((2, 3))

    encoder = Mean()
    assert encoder(torch.rand(4, 3, 8, 8)).shape == (4, 3)
    with pytest.raises(ValueError, match="no classifier"):
        encoder.logits(torch.rand(4, 3, 8, 8))
