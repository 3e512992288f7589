"""GFIPlugin without arguments: defaults, the form by the optimiser, what it tells and warns of."""

import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn
from vector_streams import stream

from avalanche_cetl import GFIPlugin, WeightPenalty
from avalanche_cetl.allocation.proximal import form_of
from avalanche_cetl.evaluation import gfi_metrics


def network(*between):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Tanh(), nn.Linear(8, 6))


def run(experiences, *plugins, model=None, criterion=None, optimizer=torch.optim.SGD, **own):
    model = network() if model is None else model
    torch.manual_seed(1)
    strategy = Naive(
        model=model, optimizer=optimizer(model.parameters(), 0.01),
        criterion=criterion or nn.CrossEntropyLoss(), train_mb_size=5, train_epochs=2,
        plugins=list(plugins), **{"evaluator": None, **own},
    )  # fmt: skip
    for experience in experiences:
        strategy.train(experience)
    return strategy


NATURAL = ("kronecker", "logits", False, "auto", 0.0, 1.0, 5.0)
DEFAULTS = {
    None: NATURAL,
    "kronecker": ("kronecker", "sampled", True, "proximal", 0.0, 1.0, 2.0),
    "diagonal": ("diagonal", "sampled", True, "proximal", 0.5, 0.9, 2.0),
}


@pytest.mark.parametrize("kind", [GFIPlugin, WeightPenalty])
@pytest.mark.parametrize("basis", DEFAULTS)
def test_what_is_not_given_is_by_the_basis_that_is_named(basis, kind):
    own = kind() if basis is None else kind(2.0, basis=basis)
    names = ("basis", "fisher", "normalize", "penalty", "threshold", "probability", "dwa_lambda")
    assert tuple(getattr(own, name) for name in names) == DEFAULTS[basis]
    assert own.unseen == 0.03
    given = kind(3.0, basis=basis, fisher="empirical", normalize=False, penalty="loss", threshold=0)
    assert (given.fisher, given.normalize, given.penalty) == ("empirical", False, "loss")
    assert (given.threshold, given.dwa_lambda) == (0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "both"}, ValueError, "separate"),
        ({"mode": "online"}, ValueError, "decay_factor"),
        ({"decay_factor": 0.5}, ValueError, "online"),
        ({"mode": "online", "decay_factor": -1.0}, ValueError, "decay_factor"),
        ({"mode": "online", "decay_factor": float("nan")}, ValueError, "decay_factor"),
        ({"mode": "online", "decay_factor": float("inf")}, ValueError, "decay_factor"),
        ({"dwa_lambda": -1}, ValueError, ">= 0"),
        ({"dwa_lambda": float("nan")}, ValueError, ">= 0"),
        ({"dwa_lambda": float("inf"), "penalty": "auto"}, ValueError, "finite with penalty='auto'"),
        ({"dwa_lambda": float("inf"), "penalty": "loss"}, ValueError, "finite with penalty='loss'"),
        ({"penalty": "prox"}, ValueError, "'proximal', 'loss'"),
        ({"threshold": 2}, ValueError, r"outside \[0, 1\]"),
        ({"estimator": "kde"}, ValueError, "histogram"),
        ({"fisher": "outputs"}, ValueError, "'sampled', 'empirical', 'logits'"),
        ({"samples": 1}, ValueError, "at least 2"),
        ({"samples": 2.5}, TypeError, "samples"),
        ({"samples": "a"}, TypeError, "samples"),
        ({"basis": "eigen"}, ValueError, "basis='eigen' is not known.*'diagonal', 'kronecker'"),
        ({"basis": "diagonal", "dwa_lambda": None}, ValueError, "given with basis='diagonal'"),
        ({"basis": "kronecker", "dwa_lambda": None}, ValueError, "given with basis='kronecker'"),
        ({"rank": 0}, ValueError, "rank=0"),
        ({"rank": -3}, ValueError, "rank=-3"),
        ({"rank": 2.0}, TypeError, "rank=2.0"),
        ({"rank": None}, TypeError, "rank=None"),
        ({"output": True}, TypeError, "output="),
        ({"output": 1.5}, TypeError, "output="),
        ({"output": [0]}, TypeError, "output="),
        ({"ewc_lambda": 2.0}, TypeError, "give dwa_lambda= alone"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        GFIPlugin(**{"dwa_lambda": 1.0, "basis": "diagonal", **arguments})


def test_the_argument_of_ewc_is_taken_as_ours_with_a_warning():
    with pytest.warns(FutureWarning, match=r"dwa_lambda=2\.0") as caught:
        plugin = GFIPlugin(ewc_lambda=2.0, mode="online", decay_factor=0.5, basis="diagonal")
    assert plugin.dwa_lambda == 2.0 and [one.filename for one in caught] == [__file__]
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=">= 0"):
        GFIPlugin(ewc_lambda=-1.0, basis="diagonal")


IN_THE_LOSS = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"]


@pytest.mark.parametrize("name", [*IN_THE_LOSS, "SGD", "ASGD", "Rprop", "LBFGS"])
def test_the_form_follows_the_optimiser(name):
    optimizer = getattr(torch.optim, name)(network().parameters(), lr=0.1)
    wanted = "loss" if name in IN_THE_LOSS else "proximal"
    assert form_of("auto", optimizer) == wanted
    assert [form_of(form, optimizer) for form in ("loss", "proximal")] == ["loss", "proximal"]
    optimizer.param_groups[0]["maximize"] = True  # the loss would drive weights away
    assert form_of("auto", optimizer) == "proximal"


def test_the_form_of_the_loss_needs_an_optimiser():
    with pytest.raises(ValueError, match=r"loss\(model, optimizer\)"):
        WeightPenalty().loss(network())
    assert float(WeightPenalty(penalty="loss").loss(network())) == 0


@pytest.mark.parametrize(
    ("optimizer", "form"), [(torch.optim.SGD, "proximal"), (torch.optim.Adam, "loss")]
)
def test_auto_trains_the_weights_of_the_form_that_it_takes(optimizer, form):
    found = []
    for given in ({}, {"penalty": form}, {"penalty": {"loss": "proximal"}.get(form, "loss")}):
        strategy = run(stream(2), GFIPlugin(**given), optimizer=optimizer)
        found.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_movement_is_a_metric_of_every_experience_but_the_first():
    evaluator = EvaluationPlugin(loss_metrics(epoch=True), *gfi_metrics(), loggers=[])
    plugin, moved = GFIPlugin(), []
    strategy = run([], plugin, evaluator=evaluator)
    for experience in stream():
        strategy.train(experience)
        moved.append(plugin.moved)
    (values,) = (v for name, (_, v) in evaluator.get_all_metrics().items() if "Moved" in name)
    assert moved[0] is None and values == moved[1:] and min(values) > 0


# ------------------------------------------------------------------ warnings


def told(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    texts = [(str(one.message), one.filename) for one in caught]
    return [t for t in texts if "new images" in t[0] or "head has not had" in t[0]]


def masked():
    return MaskedCrossEntropy(mask="new")


class Memory(SupervisedPlugin):
    storage_policy = None


def test_new_classes_of_a_shared_head_are_warned_of_once():
    ((text, file),) = told(lambda: run(stream(), GFIPlugin()))
    assert file == __file__
    for name in ('MaskedCrossEntropy(mask="new")', "ReplayPlugin", "StreamingRidge"):
        assert name in text


SILENT = {
    "the same classes": lambda: run(stream(disjoint=False), GFIPlugin()),
    "one experience": lambda: run(stream()[:1], GFIPlugin()),
    "replay": lambda: run(stream(), GFIPlugin(), ReplayPlugin(8)),
    "another memory": lambda: run(stream(), GFIPlugin(), Memory()),
    "no strength": lambda: run(stream(), GFIPlugin(0.0)),
    "a masked loss": lambda: (lambda loss: run(stream(), GFIPlugin(), loss, criterion=loss))(
        masked()
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_where_nothing_is_lost_there_is_no_warning(name):
    assert told(SILENT[name]) == []


class Freeze(SupervisedPlugin):
    def before_training_epoch(self, strategy, **kwargs):
        strategy.model[1].eval()


def test_batch_norm_in_training_mode_is_warned_of_from_the_second_experience_on():
    def make(*plugins, count=3, norm=None):
        experiences = stream(disjoint=False)[:count]
        return lambda: run(
            experiences, GFIPlugin(), *plugins, model=network(norm or nn.BatchNorm1d(8))
        )

    ((text, file),) = told(make())
    assert "eval()" in text and file == __file__
    assert told(make(count=1)) == told(make(Freeze())) == []
    assert told(make(norm=nn.BatchNorm1d(8, track_running_stats=False))) == []
    assert told(make(norm=nn.GroupNorm(2, 8))) == []
