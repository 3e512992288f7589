"""The loop: one sample after another."""

import pytest
import torch
from networks import Of
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from avalanche_cetl import fisher_information


def _reentrant():
    return Of(
        lambda m, x: checkpoint(m.o, torch.tanh(m.i(x)), use_reentrant=True),
        i=nn.Linear(6, 5), o=nn.Linear(5, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize("n", [1, 5])
def test_gradients_that_parameters_had_stay(n):
    torch.manual_seed(0)
    model, x = _reentrant(), torch.randn(n, 6, dtype=torch.float64)
    model.i.weight.grad = torch.ones_like(model.i.weight)
    found = fisher_information(model, x, lambda out: out.square().sum(1))
    assert (model.i.weight.grad == 1).all() and model.o.weight.grad is None
    assert all(value.any() for value in found.values())


def test_an_optimiser_hooked_to_the_backward_pass_does_not_step():
    torch.manual_seed(0)
    model, x = _reentrant(), torch.randn(5, 6, dtype=torch.float64)
    stepped = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: stepped.append(p))
    with pytest.raises(RuntimeError, match="checkpoint"):
        fisher_information(model, x, lambda out: out.square().sum(1))
    assert not stepped


@pytest.mark.parametrize("n", [1, 4])
def test_parameters_of_a_reentrant_checkpoint_alone_have_their_gradients(n):
    torch.manual_seed(0)
    model, x = _reentrant(), torch.randn(n, 6, dtype=torch.float64)
    loss = lambda out: out.square().sum(1)  # noqa: E731
    whole = fisher_information(model, x, loss)
    part = fisher_information(model, x, loss, params=["o.weight"])
    torch.testing.assert_close(part["o.weight"], whole["o.weight"])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_pairs_never_leave_a_single_sample_over(n):
    torch.manual_seed(0)
    model = Of(lambda m, x: m.o(m.c(x).squeeze()), c=nn.Conv2d(1, 4, 4), o=nn.Linear(4, 3)).double()
    y = torch.randint(3, (n,))
    x = torch.rand(n, 1, 4, 4, dtype=torch.float64)
    wanted = torch.zeros_like(model.o.weight)
    for i in range(n):
        loss = F.cross_entropy(model(x[[i, i]]), y[[i, i]])
        wanted += torch.autograd.grad(loss, model.o.weight)[0] ** 2 / n
    for chunk_bytes in (1, 2**20):
        found = fisher_information(model, x, "empirical", targets=y, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(found["o.weight"], wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("n", [2, 8])
@pytest.mark.parametrize("bag", [False, True])
def test_sparse_gradients_are_read(bag, n, assert_exact):
    torch.manual_seed(0)
    first = (
        nn.EmbeddingBag(20, 6, mode="sum", sparse=True)
        if bag
        else nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Flatten())
    )
    model = nn.Sequential(first, nn.Linear(6 if bag else 24, 3)).double()
    assert_exact(model, torch.randint(0, 20, (n, 4)))
