import warnings

import pytest
import torch
from loss_runs import coupled, trained

from avalanche_cetl import DecoderHints
from avalanche_cetl.plugins.hints import hint_loss


def test_the_hint_loss_is_relative_to_the_square_of_the_hint():
    hint = torch.tensor([3.0, -4.0], requires_grad=True)
    assert float(hint_loss(hint, hint)) == 0
    found = torch.zeros(2, requires_grad=True)
    hint_loss(found, hint).backward()
    assert float(hint_loss(found, hint)) == 1 and hint.grad is None
    assert found.grad.tolist() == pytest.approx([-6 / 25, 8 / 25])
    assert float(hint_loss(torch.ones(2), torch.zeros(2))) > 0  # no division by zero


def test_decoder_hints_bring_hidden_layers_together(teacher, few):
    x = torch.stack([row[0] for row in few.test_stream[0].dataset])
    distances = []
    for weight in (0.0, 1.0):
        model = coupled(teacher)
        hints = [DecoderHints(weight)] if weight else []
        s = trained(model, few, *hints, variant="f", warmup_epochs=10, train_epochs=8)
        assert ("L_hint" in s.round_losses) == (weight > 0)
        model.eval()
        with torch.no_grad():
            goal = model.decoder.forward_hidden(model.source_code(x))[1][0]
            mine = model.decoder.forward_hidden(model.target_code(x)[0])[1][0]
        distances.append(float((mine - goal).square().mean() / goal.square().mean()))
    assert distances[1] < distances[0]


@pytest.mark.parametrize("variant", ["direct", "joint"])
def test_hints_without_a_part_for_the_decoder_are_warned_of(teacher, few, variant):
    model = coupled(teacher)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        s = trained(model, few, DecoderHints(), variant=variant, train_epochs=1)
    told = [w for w in caught if "DecoderHints does nothing" in str(w.message)]
    assert (len(told) == 1) == (variant == "direct") == ("L_hint" not in s.round_losses)
