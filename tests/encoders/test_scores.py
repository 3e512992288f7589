"""Classifiers that give probabilities: recognised once, and read as logits."""

import copy
import math
import warnings

import pytest
import torch
from networks import Of
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import Encoder, ModuleEncoder, ONNXEncoder
from avalanche_cetl.encoders.scores import Scores


def network(classes=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, classes))


def images(count=6, seed=1):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def encoder(module):
    return ModuleEncoder(module, input_shape=(1, 8, 8))


def after(function, classes=5):
    """A network with a function behind it."""
    return Of(lambda m, x: function(m.network(x)), network=network(classes))


SOFTMAX = {
    "module": lambda: nn.Sequential(network(), nn.Softmax(1)),
    "function": lambda: after(lambda z: z.softmax(1)),
    "by hand": lambda: after(lambda z: z.exp() / z.exp().sum(1, keepdim=True)),
    "two classes": lambda: after(lambda z: z.softmax(1), 2),
}


@pytest.mark.parametrize("make", SOFTMAX.values(), ids=SOFTMAX)
@pytest.mark.parametrize("rows", [1, 6])
def test_probabilities_of_a_softmax_are_read_as_logits(make, rows):
    module = make().eval()
    with pytest.warns(RuntimeWarning, match="softmax"):
        found = encoder(module).logits(images(rows))
    torch.testing.assert_close(found, module(images(rows)).log())


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("last", [nn.Sigmoid(), torch.sigmoid], ids=["module", "function"])
def test_probabilities_of_a_sigmoid_are_read_as_logits(last, classes):
    module = after(last, classes)
    with pytest.warns(RuntimeWarning, match="sigmoid"):
        found = encoder(module).logits(images())
    torch.testing.assert_close(found, module.network(images()), atol=1e-4, rtol=1e-4)


def test_a_sigmoid_behind_a_normalisation_is_recognised():
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 3), nn.Sigmoid()
    )
    found = encoder(module).logits(images())
    torch.testing.assert_close(found, module[:4](images()), atol=1e-4, rtol=1e-4)


def constant(*values):
    return after(lambda z: torch.tensor([values]).expand(len(z), -1).clone())


LOGITS = {
    "logits": network,
    "logarithms of probabilities": lambda: after(lambda z: z.log_softmax(1)),
    "positive": lambda: after(lambda z: z.square() * 0.1),
    "small": lambda: after(lambda z: z * 1e-3 + 0.5),
    "normalised": lambda: after(lambda z: F.normalize(z, dim=1).abs()),
    "zeros": lambda: constant(0.0, 0.0, 0.0),
    "one class": lambda: after(lambda z: 0 * z[:, :1] + 1),
}


@pytest.mark.parametrize("make", LOGITS.values(), ids=LOGITS)
def test_logits_stay_as_they_are_to_the_bit(make):
    module = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = encoder(module).logits(images())
    assert torch.equal(found, module(images()))


def test_one_row_that_is_a_probability_by_chance_does_not_decide():
    module = after(lambda z: z)
    with torch.no_grad():
        first = module(images(1))[0]
        module.network[3].bias -= first - torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    found = encoder(module)
    assert torch.equal(found.logits(images(1)), module(images(1)))
    assert torch.equal(found.logits(images()), module(images()))


def test_what_was_found_first_holds_for_later_mini_batches():
    scores = Scores("it")
    values = [torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([[3.0, -1.0]])]
    scores.read(lambda x: values[1], torch.zeros(1, 2))
    assert torch.equal(scores.read(lambda x: values[0], torch.zeros(2, 2)), values[0])


def test_it_is_said_once():
    found = encoder(SOFTMAX["module"]())
    with pytest.warns(RuntimeWarning) as told:
        for _ in range(3):
            found.cheapest_logits(images())
    assert len([one for one in told if "probabilities" in str(one.message)]) == 1


@pytest.mark.parametrize(
    ("function", "half"),
    [(lambda z: z.softmax(1), math.log(0.5)), (torch.sigmoid, 0.0)],
    ids=["softmax", "sigmoid"],
)
def test_probabilities_of_0_and_1_have_finite_logits(function, half):
    module = after(lambda z: function(1000 * z), 3)
    found = encoder(module).logits(images())
    assert found.isfinite().all() and module(images()).min() == 0 and module(images()).max() == 1
    assert torch.equal(found > half, module(images()) > 0.5)


def test_half_precision_is_recognised():
    module = nn.Sequential(network(50), nn.Softmax(1)).to(torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="softmax"):
        assert encoder(module).logits(images()).max() <= 0


def test_recognition_draws_nothing_and_leaves_the_fingerprint():
    module = SOFTMAX["module"]()
    found, fresh = encoder(module), encoder(module)
    torch.manual_seed(3)
    found.logits(images())
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)) and found.fingerprint() == fresh.fingerprint()
    assert torch.equal(copy.deepcopy(found).logits(images()), fresh.logits(images()))


class Own(Encoder):
    """An encoder of a user's, whose logits are probabilities."""

    def __init__(self):
        super().__init__()
        self.dim, self.num_classes, self.inner = 64, 5, network()
        self.freeze()

    def encode(self, x):
        return x.flatten(1)

    def logits(self, x):
        return self.classify(self(x))

    @property
    def classifies_features(self):
        return True

    def classify(self, features):
        return self.inner(features).softmax(1)


def test_an_encoder_of_ones_own_is_read_in_the_same_way():
    own, x = Own(), images()
    goal = own.logits(x).log()
    torch.testing.assert_close(own.cheapest_logits(x), goal)
    torch.testing.assert_close(own.cheapest_logits(x, own(x)), goal)


def test_what_is_no_matrix_is_named():
    with pytest.raises(ValueError, match=r"it gives a dict with the keys \['a'\]"):
        Scores("it").read(lambda x: {"a": x}, torch.zeros(2, 2))


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()], ids=["softmax", "sigmoid"])
def test_probabilities_of_an_onnx_file_are_read_as_logits(last, tmp_path):
    pytest.importorskip("onnxruntime")
    module, path = network(), tmp_path / "net.onnx"
    module[2] = nn.ReLU()  # loud noise stays loud
    torch.onnx.export(
        nn.Sequential(module, last), (images(2),), str(path), dynamo=False,
        input_names=["images"], output_names=["scores"], dynamic_axes={"images": {0: "n"}},
    )  # fmt: skip
    found = ONNXEncoder(path, logits="scores").logits(images())
    goal = module(images()).log_softmax(1) if isinstance(last, nn.Softmax) else module(images())
    torch.testing.assert_close(found, goal, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_softmax_in_bfloat16_is_read_as_a_softmax(classes):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, classes), nn.Softmax(1)).bfloat16()
    with torch.no_grad():
        network[1].weight.mul_(6)
    encoder = ModuleEncoder(network, input_shape=(1, 8, 8))
    images = torch.rand(256, 1, 8, 8)
    with pytest.warns(RuntimeWarning, match="softmax"):
        found = encoder.logits(images)
    torch.testing.assert_close(
        found.softmax(1), network(images.bfloat16()).float(), atol=1e-2, rtol=0
    )
