import pytest
import torch

from avalanche_cetl.common.standardize import floored_deviation


@pytest.mark.parametrize("correction", [0, 1])
def test_features_that_vary_alike_keep_their_deviation_to_the_bit(correction):
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    wanted = features.std(0, correction=correction)
    assert torch.equal(floored_deviation(features, correction=correction), wanted)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_deviation_is_at_least_a_tenth_of_the_root_mean_square_of_all(scale):
    features = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features[:, 2] *= 1e-3
    features[:, 3] = 1
    plain = (scale * features).std(0, correction=0)
    found = floored_deviation(scale * features, correction=0)
    floor = 0.1 * (plain.square().sum() / 6).sqrt()
    others = [0, 1, 4, 5]
    torch.testing.assert_close(found[[2, 3]], torch.stack([floor, floor]))
    assert torch.equal(found[others], plain[others])


def test_deviations_of_features_that_never_vary_are_zero():
    assert torch.equal(floored_deviation(torch.ones(5, 3), correction=0), torch.zeros(3))
