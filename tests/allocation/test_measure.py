import pytest
import torch

from avalanche_cetl import GFISettings
from avalanche_cetl.allocation.measure import gate


def weights(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"w": torch.rand(count, generator=generator), "b": torch.rand(2, generator=generator)}


def gated(fisher, relative, **settings):
    return gate(fisher, relative, GFISettings(**settings), torch.Generator().manual_seed(0))


def test_importances_without_a_gate_are_plain_fisher_information():
    values, shared = gated(weights(), None, normalize=False)
    assert shared == {} and all(torch.equal(values[n], v) for n, v in weights().items())


def test_a_certain_gate_keeps_shared_weights_and_frees_the_others():
    fisher, relative = weights(), weights(seed=1)
    values, shared = gated(fisher, relative, threshold=0.5, probability=1.0, normalize=False)
    for name, value in fisher.items():
        kept = relative[name] >= 0.5
        assert torch.equal(values[name], torch.where(kept, value, 0))
        assert shared[name] == pytest.approx(float(kept.float().mean()))


def test_a_normalised_importance_has_mean_one_over_its_non_zero_entries():
    values, _ = gated(weights(), weights(seed=1))
    entries = torch.cat([value.flatten() for value in values.values()])
    assert float(entries[entries > 0].mean()) == pytest.approx(1, abs=1e-6)


def test_relative_information_of_weights_without_an_importance_is_not_read():
    fisher, relative = {"w": weights()["w"]}, weights(seed=1)
    assert gated(fisher, relative)[0].keys() == {"w"}
