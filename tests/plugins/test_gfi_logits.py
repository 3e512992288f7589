"""GFIPlugin with ``fisher="logits"``: the importance of the outputs."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from gfi_runs import GATE, MODES, Keep, assert_close, growing, network, rows_of, train, with_heads
from naive_bases import matrices, sides
from naive_gradients import gradients, mean_squares
from networks import Of
from torch import nn
from vector_streams import stream

from avalanche_cetl import GFIPlugin
from avalanche_cetl.allocation.measure import Measurement
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.information.outputs import vectors_of

NATURAL = {"fisher": "logits", "normalize": False}


class Watched(OutputLikelihood):
    """Keeps the vectors that were drawn last."""

    def draw(self, *arguments):
        self.drawn = super().draw(*arguments)
        return self.drawn

    def vectors_later(self, model, sample, generator, weights):
        later = super().vectors_later(model, sample, generator, weights)
        if later is not None:
            outputs = torch.zeros_like(later[1])  # their values do not count
            own = weights(0, outputs.shape[1])
            self.drawn = vectors_of(outputs, self.likelihood, later[1], own).float()
        return later


def watched(**arguments):
    plugin = GFIPlugin(
        0.1,
        **{
            **NATURAL,
            **{"basis": "diagonal", "unseen": 1.0, "threshold": 0, "probability": 1},
            **arguments,
        },
    )
    plugin.measurer.likelihood = Watched(plugin.likelihood, plugin.output)
    return plugin


def test_importances_are_mean_squares_of_the_gradients_of_projected_logits():
    plugin, experiences, model = watched(), stream(), network()
    keep = Keep(plugin)
    train(model, [plugin, keep], experiences)
    x, *_ = rows_of(experiences[2])
    u = plugin.measurer.likelihood.drawn
    torch.testing.assert_close(u.sum(1), torch.zeros(20), rtol=0, atol=1e-6)
    torch.testing.assert_close(u.square().sum(1), torch.full((20,), 5 / 6))  # r / K
    assert_close(plugin.importances[2], mean_squares(model, (model.eval()(x) * u).sum(1)))
    # In natural units: what is held is what was measured.
    assert_close(keep.gated[2][1], plugin.importances[1])


def test_importances_in_a_basis_are_those_of_the_rotated_gradients():
    plugin, experiences, model = watched(basis="kronecker"), stream(1), network()
    train(model, [plugin], experiences)
    x, *_ = rows_of(experiences[0])
    found = gradients(model, (model.eval()(x) * plugin.measurer.likelihood.drawn).sum(1))
    for name, layer in plugin.bases[0].items():
        ((left, right),) = sides(layer)
        squares = []
        for n in range(len(x)):
            (matrix,) = matrices(layer, {one: found[one][n] for one in layer.parameters})
            squares.append((left.T @ matrix.to(left) @ right).square())
        wanted = torch.stack(squares).mean(0).float()
        torch.testing.assert_close(plugin.importances[0][name], wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("fisher", ["logits", "empirical"])
def test_labels_are_not_read(fisher):
    found = []
    for turned in (False, True):
        plugin = GFIPlugin(0.0, fisher=fisher, threshold=0.5, basis="diagonal")
        experiences = stream(2, disjoint=False)

        def turn(out, y, turned=turned):
            return nn.functional.cross_entropy(out, 1 - y if turned else y) * 0

        read = plugin.measurer.sample

        def turned_labels(rows, read=read, turned=turned):
            sample = read(rows)
            return sample._replace(labels=1 - sample.labels) if turned else sample

        plugin.measurer.sample = turned_labels
        run = train(network(2), [plugin], experiences[:0])
        run._criterion = turn
        for experience in experiences:
            run.train(experience)
        found.append(plugin)
    same = [
        torch.equal(value, found[1].importances[1][name])
        for name, value in found[0].importances[1].items()
    ]
    assert all(same) if fisher == "logits" else not any(same)
    if fisher == "logits":
        assert found[0].shared == found[1].shared


def test_labels_that_the_likelihood_does_not_know_are_no_obstacle():
    experiences = stream(2)  # classes 0 to 3, of four outputs that are real values
    plugin = watched(likelihood="gaussian")
    train(network(4), [plugin], experiences)
    assert all(v.any() for v in plugin.importances[1].values())
    with pytest.raises(ValueError, match="one target for each output"):
        train(network(4), [GFIPlugin(0.1, likelihood="gaussian", basis="diagonal")], experiences)


@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
@pytest.mark.parametrize("mode", MODES)
def test_either_task_of_a_gate_has_vectors_of_its_own(basis, mode, monkeypatch):
    asked = []
    relative = Measurement.relative

    def watch(self, *tasks):
        asked.append([task.targets for task in tasks])
        return relative(self, *tasks)

    monkeypatch.setattr(Measurement, "relative", watch)
    plugin = GFIPlugin(
        0.1, basis=basis, threshold=0.5, probability=0.9, fisher="logits", **MODES[mode]
    )
    keep = Keep(plugin)
    train(network(), [plugin, keep], stream())
    assert len(asked) >= 2 and all(0 <= share <= 1 for share in plugin.shared[1].values())
    for old, new in asked:
        assert old.shape == new.shape == (20, 6) and not torch.equal(old, new)
        for vectors in (old, new):
            torch.testing.assert_close(vectors.sum(1), torch.zeros(20), rtol=0, atol=1e-6)
    gated = torch.cat([value.flatten() for value in keep.gated[2][1].values()])
    assert 0 < float((gated == 0).float().mean()) < 1


@pytest.mark.parametrize("masking", [False, True])
def test_an_old_task_has_no_part_in_units_that_the_head_has_grown_by(masking, monkeypatch):
    plugin, experiences, model = watched(threshold=0.5), stream(), growing(masking)
    measured = []
    relative = Measurement.relative

    def watch(self, old, new):
        found = old.loss(self.network(*self._inputs), old.targets)
        measured.append((old.targets.shape[1], new.targets.shape[1], found.shape))
        return relative(self, old, new)

    monkeypatch.setattr(Measurement, "relative", watch)
    train(model, [plugin], experiences)
    assert measured == [(2, 4, (20,)), (4, 6, (20,))]
    x, *_ = rows_of(experiences[2])
    u = plugin.measurer.likelihood.drawn
    torch.testing.assert_close(u.square().sum(1), torch.full((20,), 5 / 6))
    assert_close(plugin.importances[2], mean_squares(model, (model.eval()(x) * u).sum(1)))
    assert plugin.importances[0]["head.classifier.weight"].shape == (2, 8)


def test_units_that_are_masked_are_no_outputs():
    plugin, experiences, model = watched(), stream(2), growing(masking=True)
    model.head = IncrementalClassifier(8, 10)  # ten units, of which four will be seen
    train(model, [plugin], experiences)
    x, *_ = rows_of(experiences[1])
    u = plugin.measurer.likelihood.drawn
    assert (model.eval()(x)[:, 4:] == -1000).all() and not u[:, 4:].any()
    torch.testing.assert_close(u.square().sum(1), torch.full((20,), 3 / 4))
    assert_close(plugin.importances[1], mean_squares(model, (model(x) * u).sum(1)))


@pytest.mark.parametrize("gate", [{}, GATE])
@pytest.mark.parametrize("basis", ["diagonal", "kronecker"])
def test_every_image_counts_the_outputs_of_its_own_head(basis, gate):
    plugin, experiences, model = watched(basis=basis, **gate), stream(by_task=True), with_heads()
    train(model, [plugin], experiences)
    vectors = plugin.measurer.likelihood.drawn
    assert vectors.shape[1] == 6 and vectors.all()  # the head of task 2
    if basis == "diagonal":
        x, *_ = rows_of(experiences[2])
        out = model.eval()(x, torch.full((20,), 2))
        assert_close(plugin.importances[2], mean_squares(model, (out * vectors).sum(1)))
    first = stream(by_task=True)[0]
    x, *_ = rows_of(first)
    tasks = torch.zeros(20, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    own = OutputLikelihood().draw(model, x, tasks, generator, "logits")
    # Avalanche fills the first head up to six: two outputs, one direction, of length 1 / 2.
    torch.testing.assert_close(own[:, :2].abs(), torch.full((20, 2), 0.5))
    assert not own[:, 2:].any()


def test_the_outputs_are_picked_and_yes_or_no_is_not_centred():
    model, experiences = Of(lambda m, x: (x, m.inner(x)), inner=network(1)), stream(1)
    plugin = watched(likelihood="bernoulli", output=1)
    run = train(model, [plugin], experiences[:0])
    run._criterion = lambda out, y: nn.functional.binary_cross_entropy_with_logits(
        out[1].flatten(), y.float()
    )
    run.train(experiences[0])
    x, *_ = rows_of(experiences[0])
    assert_close(plugin.importances[0], mean_squares(model, model.eval()(x)[1].flatten()))
