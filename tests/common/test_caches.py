"""Attention that gathers its biases in evaluation mode, and layers whose weight has a graph."""

import copy

import pytest
import torch
from timm.models import efficientvit_msra, levit, tiny_vit
from torch import nn

from avalanche_cetl import fisher_information
from avalanche_cetl.common.caches import caches_dropped, copied, renew_caches
from avalanche_cetl.common.modes import evaluation_mode


class Biased(nn.Module):
    """Weights by position, as attention has them; a BatchNorm shows whether children evaluate."""

    def __init__(self):
        super().__init__()
        self.biases = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.arange(4))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(x.flatten(1) + self.gathered())


class Lazy(Biased):
    """As transformers has it: kept at the first pass."""

    def __init__(self):
        super().__init__()
        self.cache = {}

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and self.cache:
            self.cache = {}
        return self

    def gathered(self):
        if self.training:
            return self.biases[self.index]
        if "cpu" not in self.cache:
            self.cache["cpu"] = self.biases[self.index]
        return self.cache["cpu"]


class Eager(Biased):
    """As the authors of LeViT and TinyViT have it: kept when evaluation mode begins."""

    @torch.no_grad()
    def train(self, mode=True):
        super().train(mode)
        if mode and hasattr(self, "ab"):
            del self.ab
        else:
            self.ab = self.biases[self.index]
        return self

    def gathered(self):
        return self.biases[self.index] if self.training else self.ab


class Timm(nn.Module):
    """An attention of timm's on four pixels."""

    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.inner = make()
        for p in self.inner.parameters():
            nn.init.normal_(p, std=0.5)

    def forward(self, x):
        tokens = x.flatten(1).unsqueeze(-1) * torch.linspace(-1, 1, 8)
        if isinstance(self.inner, efficientvit_msra.CascadedGroupAttention):
            tokens = tokens.transpose(1, 2).unflatten(2, (2, 2))
        return self.inner(tokens).flatten(1)[:, :4]


NETWORKS = {
    "lazy": Lazy,
    "eager": Eager,
    "levit": lambda: Timm(lambda: levit.Attention(8, 2, 2, resolution=2)),
    "tiny vit": lambda: Timm(lambda: tiny_vit.Attention(8, 2, 2, resolution=(2, 2))),
    "efficient vit": lambda: Timm(
        lambda: efficientvit_msra.CascadedGroupAttention(8, 2, 2, 2, resolution=2, kernels=(3, 3))
    ),
}
IMAGES = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(3))
LABELS = torch.arange(6) % 4


def network(name):
    torch.manual_seed(0)
    return nn.Sequential(NETWORKS[name](), nn.Linear(4, 4))


def biases(model):
    return {n: p for n, p in model.named_parameters() if "biases" in n}


def evaluated(model):
    model.eval()
    with torch.no_grad():
        return model(IMAGES)


def measured(model):
    return fisher_information(model, IMAGES, "empirical", targets=LABELS)


@pytest.mark.parametrize("name", NETWORKS)
def test_fisher_information_after_an_evaluation_is_what_it_was_before(name):
    wanted = measured(network(name))
    model = network(name)
    evaluated(model)
    found = measured(model)
    for parameter in found:
        torch.testing.assert_close(found[parameter], wanted[parameter])
    assert all(float(found[parameter].sum()) > 0 for parameter in biases(model))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_measurement_does_not_read_values_of_earlier_weights_and_leaves_the_cache(name):
    model, other = network(name), network(name)
    before = evaluated(model)
    with torch.no_grad():
        for one in (model, other):
            for p in biases(one).values():
                p.add_(torch.arange(p.numel()).view(p.shape) % 3)
    wanted = evaluated(other)
    with evaluation_mode(model), torch.no_grad():
        now = model(IMAGES)
    torch.testing.assert_close(now, wanted)
    assert not torch.allclose(now, before)
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model(IMAGES), before)  # stale as the network itself has it


@pytest.mark.parametrize("name", NETWORKS)
def test_in_evaluation_mode_children_evaluate_and_modes_come_back(name):
    model = network(name).train()
    with evaluation_mode(model):
        eager = [m for m in model.modules() if m.training]
        assert len(eager) == (name == "eager")
    assert all(m.training for m in model.modules())
    assert not vars(model[0]).get("cache")


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_renew_what_their_new_weights_need(name):
    model = network(name)
    evaluated(model)
    made = copied(model)
    with torch.no_grad():
        for one in (model, made):
            for p in biases(one).values():
                p.mul_(-2).sub_(torch.arange(p.numel()).view(p.shape) % 3)
    renew_caches(made)
    with torch.no_grad():
        found = made(IMAGES)
    torch.testing.assert_close(found, evaluated(model.train()))
    assert not any(m.training for m in made.modules())


class Merging(nn.Linear):
    """A layer whose train() writes its weights, as LoRA does; its tensor attribute is no cache."""

    def __init__(self):
        super().__init__(4, 4)
        self.scale = torch.ones(1)
        self.calls = 0

    def train(self, mode=True):
        super().train(mode)
        self.calls += 1
        self.weight.data.mul_(2 if mode else 0.5)
        return self


def test_a_train_of_another_kind_is_not_called_on_the_network():
    model = nn.Sequential(Merging())
    before = model[0].weight.clone()
    with caches_dropped(model) as eager, evaluation_mode(model):
        assert eager == [] and torch.equal(model[0].weight, before)
    renew_caches(model.eval())
    assert model[0].calls == 1


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_with_a_graph_is_copied_and_follows_the_copys_weights():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 4)))
    x = torch.randn(5, 3)
    wanted = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    made = copied(model)
    torch.testing.assert_close(made(x), wanted)
    with torch.no_grad():
        made[0].weight_g.mul_(0)
    torch.testing.assert_close(made(x), made[0].bias.expand(5, 4))
    torch.testing.assert_close(model(x), wanted)


def test_a_cache_that_was_filled_with_gradients_is_copied():
    model = network("lazy").eval()
    model(IMAGES)
    made = copied(model)
    assert made[0].cache["cpu"].grad_fn is None and model[0].cache["cpu"].grad_fn is not None


class Averaged(nn.Linear):
    """Evaluates with averaged weights, which its own train() puts in the place of the others."""

    def __init__(self):
        super().__init__(3, 3)
        self.average, self.swapped = torch.full((3, 3), 7.0), False

    def train(self, mode=True):
        if mode == self.swapped:
            own = self.weight.data.clone()
            self.weight.data.copy_(self.average)
            self.average.copy_(own)
            self.swapped = not self.swapped
        return super().train(mode)


def test_a_measurement_leaves_tensors_alone_that_a_module_writes_in_its_own_train():
    model = Averaged()
    weight = model.weight.detach().clone()
    with evaluation_mode(model):
        pass
    model.train()
    assert torch.equal(model.weight, weight)
    assert bool((model.average == 7).all())
