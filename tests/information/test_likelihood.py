import pytest
import torch
from naive_gradients import assert_close, mean_squares
from networks import Of
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import fisher_information, relative_fisher
from avalanche_cetl.information.likelihood import negative_log_likelihood, sample_targets


def network(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def images(n=6):
    return torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loop(model, x, loss):
    """Mean over samples of the squared gradient of each one's own loss."""
    return mean_squares(model, [loss(model(one), i) for i, one in enumerate(x.split(1))])


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 3)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_empirical_fisher_of_yes_or_no_is_that_of_binary_cross_entropy(shape, dtype):
    model, x = network(shape[1] if len(shape) > 1 else 1), images()
    y = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5).to(dtype)
    found = fisher_information(model, x, "empirical", targets=y, likelihood="bernoulli")

    def loss(out, i):
        terms = F.binary_cross_entropy_with_logits(
            out, y[i].double().reshape(out.shape), reduction="none"
        )
        return terms.sum()

    assert_close(found, loop(model, x, loss))


def test_sampled_fisher_of_yes_or_no_takes_targets_that_the_sigmoid_draws():
    model, x = network(3), images()
    found = fisher_information(
        model, x, likelihood="bernoulli", generator=torch.Generator().manual_seed(3)
    )
    y = sample_targets(model(x), "bernoulli", torch.Generator().manual_seed(3))
    assert y.shape == (6, 3) and set(y.unique().tolist()) == {0.0, 1.0}
    assert_close(
        found,
        loop(
            model, x, lambda o, i: F.binary_cross_entropy_with_logits(o[0], y[i], reduction="sum")
        ),
    )


def test_one_squeezed_logit_counts_as_one_column():
    model, x, y = network(1), images(), torch.arange(6) % 2
    wanted = fisher_information(model, x, "empirical", targets=y, likelihood="bernoulli")
    squeezed = Of(lambda m, x: m.inner(x).squeeze(1), inner=model)
    found = fisher_information(squeezed, x, "empirical", targets=y, likelihood="bernoulli")
    assert_close({n.removeprefix("inner."): v for n, v in found.items()}, wanted)


def test_draws_follow_the_sigmoid():
    logits = torch.tensor([-2.0, 0.0, 1.0]).repeat(20000, 1)
    share = sample_targets(logits, "bernoulli", torch.Generator().manual_seed(0)).mean(0)
    torch.testing.assert_close(share, torch.tensor([-2.0, 0.0, 1.0]).sigmoid(), atol=0.01, rtol=0)


def test_a_loss_for_relative_fisher():
    model, x = network(1), images(20)
    nll = negative_log_likelihood("bernoulli")
    y = (torch.arange(20) % 2).double()
    found = relative_fisher(model, x, (nll, nll), targets=(y, y))
    # Twice the same Fisher values: all is shared, where the value varies over the samples.
    assert all(float(v.min()) > 0.99 for n, v in found.items() if n.endswith("weight"))


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_targets_are_never_broadcast(likelihood):
    model, x = network(3), images()
    with pytest.raises(ValueError, match="one target for each output"):
        fisher_information(model, x, "empirical", targets=torch.zeros(6), likelihood=likelihood)


@pytest.mark.parametrize(
    ("likelihood", "targets", "told"),
    [
        ("categorical", torch.tensor([0, 1, -1, 2, -100, 0]), r"targets\[2\] is -1 \(of 2"),
        ("categorical", torch.full((6, 3), float("nan")), r"targets\[0\] is nan"),
        ("bernoulli", torch.tensor([0, 1, 1, 2, 0, 0]), r"targets\[3\] is 2 \(of 1"),
        ("bernoulli", torch.tensor([0, -1, 1, 1, 0, 0]), r"targets\[1\] is -1"),
        ("gaussian", torch.tensor([0.0, 1, 1, 1, 0, float("inf")]), r"targets\[5\] is inf"),
    ],
)
def test_targets_that_the_likelihood_does_not_know_are_named_by_row(likelihood, targets, told):
    model = network(3 if likelihood == "categorical" else 1)
    with pytest.raises(ValueError, match=told):
        fisher_information(model, images(), "empirical", targets=targets, likelihood=likelihood)


@pytest.mark.parametrize("loss", ["sampled", "empirical"])
def test_one_logit_has_no_classes(loss):
    targets = torch.zeros(6, dtype=torch.long) if loss == "empirical" else None
    with pytest.raises(ValueError, match="'bernoulli'"):
        fisher_information(network(1), images(), loss, targets=targets)


def test_outputs_that_are_no_tensor_are_named():
    with pytest.raises(ValueError, match="gave tuple"):
        fisher_information(Of(lambda m, x: (m.inner(x), x), inner=network(3)), images())


def test_sampled_labels_follow_the_model_and_the_seed(named_case):
    logits = torch.tensor([[0.0, 2.0]]).expand(20_000, 2)
    share = sample_targets(logits, "categorical", torch.Generator().manual_seed(0)).float().mean()
    assert abs(share - torch.sigmoid(torch.tensor(2.0))) < 0.01
    model, x, _ = named_case("mlp").make(7)
    one, two, other = (
        fisher_information(model, x, generator=torch.Generator().manual_seed(s))["0.weight"]
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_sampled_reconstruction_has_unit_noise():
    out = torch.full((4000, 1, 2, 2), 3.0)
    noise = sample_targets(out, "gaussian", torch.Generator().manual_seed(0)) - out
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
