"""Samples in batches, and gradients in pieces: they make no difference."""

import pytest
import torch

from avalanche_cetl import fisher_information
from avalanche_cetl.information.gradients.grad_sample import ExpandedGradSample, KeptGradSample


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 20_000])
@pytest.mark.parametrize("name", ["max pooling", "conv groups", "embedding", "class token"])
def test_fisher_does_not_depend_on_chunks_and_order(named_case, name, chunk_bytes):
    case = named_case(name)
    model, x, targets = case.make(7)
    whole = fisher_information(model, x, "empirical", targets=targets)
    order = torch.randperm(7)
    parts = fisher_information(
        model, x[order], "empirical", targets=targets[order], chunk_bytes=chunk_bytes
    )
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-10, atol=1e-14)


def test_a_layer_larger_than_the_block_is_taken_in_parts(named_case, monkeypatch):
    monkeypatch.setattr("avalanche_cetl.information.gradients.grad_sample._CPU_BLOCK", 64)
    for name in ("conv of many channels", "conv groups", "tokens", "transposed, padded"):
        case = named_case(name)
        model, x, targets = case.make(11)
        found = fisher_information(
            model, x, "empirical", targets=targets, likelihood=case.likelihood
        )
        for key, rows in case.naive(model, x, targets).items():
            torch.testing.assert_close(found[key], rows.square().mean(0), rtol=1e-10, atol=1e-14)


def test_sampled_targets_do_not_depend_on_chunks(named_case):
    for name in ("mlp", "transposed"):
        case = named_case(name)
        model, x, _ = case.make(9)
        whole, parts = (
            fisher_information(
                model,
                x,
                likelihood=case.likelihood,
                generator=torch.Generator().manual_seed(0),
                chunk_bytes=size,
            )
            for size in (2**20, 1)
        )
        for key in whole:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-10, atol=1e-14)


class _Counting(KeptGradSample):
    """Gradients that count how often they are computed."""

    def __init__(self):
        super().__init__({"w": torch.zeros(3)})
        self.computed = 0

    def _computed(self, loss, rows):
        self.computed += 1
        return {"w": torch.ones(rows.stop - rows.start, 3) * (loss + 1)}


def test_kept_gradients_are_computed_once_and_may_be_written_into():
    sample = _Counting()
    sample.gradients(0, slice(0, 2))["w"].zero_()
    assert torch.equal(sample.gradients(0, slice(0, 2))["w"], torch.ones(2, 3))
    assert sample.computed == 1
    sample.gradients(1, slice(0, 2))
    assert sample.computed == 2


def test_an_expanded_parameter_has_one_gradient_per_sample_and_zeros_without_a_loss():
    g = torch.arange(6.0).reshape(3, 2)
    sample = ExpandedGradSample("token", torch.zeros(1, 2), [g, None])
    assert torch.equal(sample.gradients(0, slice(1, 3))["token"], g[1:].unsqueeze(1))
    assert sample.reached(0) and not sample.reached(1)
    assert not sample.gradients(1, slice(0, 3))["token"].any()


def test_rows_that_a_loss_does_not_reach_have_zeros_of_their_number():
    parameter = torch.ones(1, 3)
    sample = ExpandedGradSample("scale", parameter, [torch.ones(6, 3), None])
    assert [sample.reached(loss) for loss in (0, 1)] == [True, False]
    found = sample.gradients(1, slice(2, 5))["scale"]
    assert found.shape == (3, 1, 3) and not found.any()
    assert sample.gradients(0, slice(2, 5))["scale"].shape == found.shape
