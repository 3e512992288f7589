"""Our plugins beside those of Avalanche, in its strategies, and used in more than one training."""

import functools

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin, EvaluationPlugin
from avalanche.training.supervised import DER, Naive
from avalanche.training.supervised.mer import MER
from torch import nn
from torch.nn import functional as F

from avalanche_cetl import (
    CICNN,
    CoupledModel,
    FitNetsHints,
    GFIPlugin,
    ModuleEncoder,
    RidgeHead,
    SoftTargets,
    bound_metrics,
    cetl_metrics,
    transfer_benchmark,
    with_source_features,
)

SHAPE = (1, 8, 8)


def network(seed=0, classes=4):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes)]
    return nn.Sequential(*layers)


def encoder(seed=5):
    torch.manual_seed(seed)
    return ModuleEncoder(CICNN(4, SHAPE, width=0.1), input_shape=SHAPE)


@pytest.fixture(scope="module")
def two():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(32, *SHAPE, generator=generator), torch.arange(32) % 4
    parts = [(x[y // 2 == task], y[y // 2 == task]) for task in (0, 1)]
    return transfer_benchmark(parts, parts)


def made(kind, model, *plugins, optimizer=None, **arguments):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05)
    settings = {"train_mb_size": 8, "evaluator": None} | arguments
    return kind(model=model, optimizer=optimizer, plugins=list(plugins), **settings)


def of(caught, text):
    return [str(one.message) for one in caught if text in str(one.message)]


# ------------------------------------------------------------------ one plugin, two trainings


@pytest.mark.parametrize("basis", ["kronecker", "diagonal"])
def test_a_plugin_that_has_measured_another_network_says_so(two, recwarn, basis):
    plugin = GFIPlugin(1.0, basis=basis)
    made(Naive, network(1), plugin).train(two.train_stream)
    assert not of(recwarn, "another network")
    made(Naive, network(2), plugin).train(two.train_stream)
    (text,) = of(recwarn, "another network")
    assert "a plugin of its own" in text


def test_a_plugin_that_goes_on_with_its_network_says_nothing(two, recwarn):
    plugin, model = GFIPlugin(), network()
    plugin.remember(model, torch.rand(8, *SHAPE))
    for experience in two.train_stream:  # a strategy for each
        made(Naive, model, plugin).train(experience)
    loaded = GFIPlugin()
    loaded.load_state_dict(plugin.state_dict())
    copy = network(3)
    copy.load_state_dict(model.state_dict())
    made(Naive, copy, loaded).train(two.train_stream[0])
    assert not of(recwarn, "another network")


class Watched(SoftTargets):
    def loss(self, strategy, batch):
        images = strategy.mb_x
        self.same = torch.equal(batch.images, images)
        own = self.source(strategy)
        apart = self.teacher_logits(strategy, batch) - own.cheapest_logits(images, None)
        self.apart = float(apart.abs().max())
        return super().loss(strategy, batch)


def test_features_are_asked_whose_they_are_in_every_training(two, tmp_path):
    first, other = encoder(), encoder(6)
    stored = [with_source_features(two, one, tmp_path) for one in (first, other)]
    plugin = Watched(source=first)
    for benchmark in stored:
        made(Naive, network(), plugin).train(benchmark.train_stream[0])
        assert plugin.apart < 0.01


@pytest.mark.parametrize("metrics", [False, True])
def test_features_of_another_network_than_the_models_are_refused(two, tmp_path, metrics):
    source = encoder()
    model = CoupledModel.build(source, CICNN(4, SHAPE, width=0.1), SHAPE)
    plugins = [] if metrics else [SoftTargets()]
    evaluator = EvaluationPlugin(bound_metrics()) if metrics else None
    run = made(Naive, model, *plugins, evaluator=evaluator)
    own = with_source_features(two, source, tmp_path)
    run.train(own.train_stream[0])
    run.eval(own.test_stream[0])
    others = with_source_features(two, encoder(6), tmp_path)
    with pytest.raises(ValueError, match="of another network than the model's source"):
        if metrics:
            run.eval(others.test_stream[0])
        else:
            run.train(others.train_stream[0])


@pytest.mark.parametrize("kind", [SoftTargets, functools.partial(FitNetsHints, target_layer="1")])
def test_a_source_that_is_no_encoder_is_refused(kind):
    with pytest.raises(TypeError, match="got Sequential; wrap a module as ModuleEncoder"):
        kind(source=network())


# ------------------------------------------------------------------ what others do to a batch


class Flip(SupervisedPlugin):
    def before_forward(self, strategy, **kwargs):
        strategy.mbatch[0] = strategy.mbatch[0].flip(-1)


@pytest.mark.parametrize("first", [True, False])
def test_s_sees_what_the_network_has_seen_in_any_order_of_plugins(two, first):
    watched = Watched(source=encoder())
    made(Naive, network(), *([watched, Flip()] if first else [Flip(), watched])).train(
        two.train_stream[0]
    )
    assert watched.same


class Writes(nn.Module):
    """A network that writes into its input."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x.add_(1))


def test_s_sees_the_images_where_the_network_writes_into_them(two):
    seen = []

    class Spy(SoftTargets):
        def loss(self, strategy, batch):
            seen.append(float(batch.images.max()))
            return super().loss(strategy, batch)

    made(Naive, Writes(), Spy(source=encoder())).train(two.train_stream[0])
    assert seen and max(seen) <= 1


@pytest.mark.parametrize(
    "plugin",
    [
        lambda: SoftTargets(source=encoder()),
        lambda: FitNetsHints(target_layer="1", rows="labelled", source=encoder()),
    ],
)
def test_strategies_that_add_old_rows_to_a_mini_batch_are_taught_on_all(two, plugin):
    run = made(DER, network(), plugin(), mem_size=20, batch_size_mem=8)
    run.train(two.train_stream)


@pytest.mark.parametrize("size", [4, 8])
def test_hints_read_the_pass_of_the_mini_batch_where_another_plugin_runs_the_network(two, size):
    gem = AGEMPlugin(patterns_per_experience=16, sample_size=size)
    hints = FitNetsHints(target_layer="1", rows="labelled", source=encoder())
    made(Naive, network(), hints, gem).train(two.train_stream)


def test_the_regressor_follows_an_optimiser_that_was_replaced(two):
    model, hints = network(), FitNetsHints(target_layer="1", rows="labelled", source=encoder())
    run = made(Naive, model, hints)
    run.train(two.train_stream[0])
    run.optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    run.train(two.train_stream[1])
    assert type(hints._optimizer) is torch.optim.Adam
    kept = hints._optimizer
    run.train(two.train_stream[1])
    assert hints._optimizer is kept


# ------------------------------------------------------------------ what is told


@pytest.mark.parametrize(
    "criterion",
    [F.mse_loss, functools.partial(F.huber_loss, delta=2.0), nn.MultiLabelSoftMarginLoss()],
)
def test_losses_that_read_no_class_logits_are_told(two, recwarn, criterion):
    class Stop(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.stop_training()  # the labels of this stream are no targets of these losses

    run = made(Naive, network(), GFIPlugin(), Stop(), criterion=criterion)
    run.train(two.train_stream[0])
    (text,) = of(recwarn, "likelihood='bernoulli'")
    name = getattr(criterion, "func", criterion)
    assert getattr(name, "__name__", type(name).__name__) in text


def test_a_strategy_that_never_asks_for_the_penalty_is_told(two, recwarn):
    made(MER, network(), GFIPlugin(), mem_size=8, batch_size_mem=4).train(two.train_stream)
    (text,) = of(recwarn, "without asking for the penalty")
    assert text.startswith("MER ")


def test_a_strategy_without_iterations_is_told_nothing(two, recwarn):
    made(Naive, network(), GFIPlugin(), train_epochs=0).train(two.train_stream)
    assert not of(recwarn, "without asking")


def test_metrics_of_rounds_are_silent_in_a_strategy_without_rounds(two):
    run = made(Naive, network(), evaluator=EvaluationPlugin(cetl_metrics()))
    run.train(two.train_stream[0])


def test_a_ridge_head_teaches_a_student_in_half_precision_what_it_says(two):
    source = encoder()
    head = RidgeHead(source.dim, 4, penalty=1e-2)
    x, y = torch.rand(16, *SHAPE), torch.arange(16) % 4
    head.update(source(x), y)
    apart = []

    class Spy(SoftTargets):
        def loss(self, strategy, batch):
            said = head(source(batch.images))
            apart.append(float((self.teacher_logits(strategy, batch) - said).abs().max()))
            return super().loss(strategy, batch)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, images):
            return self.inner(images).bfloat16()

    made(Naive, Half(), Spy(source=source, head=head)).train(two.train_stream[0])
    assert apart and max(apart) < 1e-4
