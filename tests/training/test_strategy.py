import copy
import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    EWCPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import Naive
from torch import nn

from avalanche_cetl import (
    CICNN,
    CETLPlugin,
    CETLStrategy,
    CoupledModel,
    DecoderHints,
    GFISettings,
    ModuleEncoder,
    Quantile,
    adaptation_benchmark,
    transfer_benchmark,
)
from avalanche_cetl.training import VARIANTS, NonFiniteLossError, Stage

SHAPE = (1, 8, 8)
ALL = list(VARIANTS)


def source_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))


def coupled(seed=1, source=True, target=None):
    torch.manual_seed(seed)
    target = CICNN(3, SHAPE, width=0.05) if target is None else target
    encoder = ModuleEncoder(source_net(), input_shape=SHAPE) if source else None
    return CoupledModel.build(encoder, target, SHAPE)


def strategy(model=None, lr=1e-2, optimizer=None, **arguments):
    model = coupled() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), lr) if optimizer is None else optimizer
    settings = {
        "train_mb_size": 16,
        "train_epochs": 1,
        "eval_mb_size": 32,
        "warmup_epochs": 1,
        "gfi": GFISettings(samples=8),
        "evaluator": None,
        **arguments,
    }
    return CETLStrategy(model=model, optimizer=optimizer, **settings)


@pytest.fixture
def transfer(digits):
    return transfer_benchmark(digits(60), digits(30, seed=1), labels_per_class=5)


@pytest.fixture
def adaptation(digits):
    return adaptation_benchmark(digits(45, seed=1), digits(60, shift=0.1), digits(30, seed=2))


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
@pytest.mark.parametrize("variant", ALL)
def test_every_variant_trains_the_target_and_never_the_source(transfer, variant, alternate):
    model = coupled()
    before = snapshot(model)
    s = strategy(model, variant=variant, alternate=alternate, train_epochs=2)
    s.train(transfer.train_stream)
    changed = moved(model, before)
    assert {n for n in before if n.startswith("target.")} <= changed
    assert any(n.startswith("decoder.") for n in changed)
    assert not any(n.startswith("source.") for n in changed)
    losses = s.round_losses
    assert {"L_rt", "L_c"} <= losses.keys()
    assert ("L_rs" in losses) == (variant in ("e", "fi", "gfi", "joint"))
    assert ("DWA1" in losses) == (variant in ("fi", "gfi"))
    assert (len(s.importance) == 3) == (variant in ("fi", "gfi"))


@pytest.mark.parametrize(("variant", "fixed"), [("f", True), ("two_step", True), ("u", False)])
def test_after_the_warm_up_t1_is_fixed_or_not(transfer, variant, fixed):
    model = coupled()
    seen = []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            if strategy.stage is not Stage.SOURCE:
                seen.append(snapshot(model))

    strategy(model, variant=variant, train_epochs=2, plugins=[Watch()]).train(transfer.train_stream)
    names = model.decoder_parameters().keys()
    same = all(torch.equal(seen[0][n], dict(model.named_parameters())[n]) for n in names)
    assert same == fixed


def test_stages_train_what_algorithm_1_says(transfer):
    model = coupled()
    log = []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            self.before = snapshot(model)

        def after_stage(self, strategy, *args, **kwargs):
            parts = {name.split(".")[0] for name in moved(model, self.before)}
            log.append((strategy.stage, parts))

    strategy(model, variant="e", warmup_epochs=0, plugins=[Watch()]).train(transfer.train_stream)
    assert log == [
        (Stage.SOURCE, {"decoder", "source_adapter"}),
        (Stage.COUPLED, {"decoder", "target"}),
        (Stage.CLASSIFY, {"target"}),
    ]


def test_importances_belong_to_the_weights_and_anchors_of_algorithm_1(transfer):
    model = coupled()
    anchors = {}

    class Watch(CETLPlugin):
        def after_stage(self, strategy, *args, **kwargs):
            anchors[strategy.stage] = snapshot(model)

    s = strategy(model, warmup_epochs=0, plugins=[Watch()])
    s.train(transfer.train_stream)
    stages = {"GFI1": Stage.SOURCE, "GFI2": Stage.COUPLED, "GFI3": Stage.COUPLED}
    for name, importance in s.importance.items():
        part = model.target_parameters() if name == "GFI3" else model.decoder_parameters()
        assert importance.values.keys() == part.keys()
        for key, anchor in importance.anchors.items():
            assert torch.equal(anchor, anchors[stages[name]][key])
        assert all((value >= 0).all() for value in importance.values.values())
        assert all(0 <= share <= 1 for share in importance.shared.values())


def test_no_dwa2_in_the_first_round_and_dwa1_from_its_second_step(transfer):
    s = strategy(warmup_epochs=0, train_epochs=1)
    s.train(transfer.train_stream)
    assert "DWA2" not in s.round_losses and s.round_losses["DWA1"] > 0
    s = strategy(warmup_epochs=0, train_epochs=2)
    s.train(transfer.train_stream)
    assert s.round_losses["DWA2"] > 0


def test_a_strong_penalty_holds_the_weights_near_their_anchors(transfer):
    distances = []
    settings = GFISettings(samples=8, threshold=0.0, probability=1.0)
    for lam in (0.0, 1e3):
        model = coupled()
        watch = {}

        class Watch(CETLPlugin):
            def after_stage(self, strategy, *args, model=model, watch=watch, **kwargs):
                watch[strategy.stage] = snapshot(model)

        s = strategy(
            model,
            variant="gfi",
            dwa_lambda=lam,
            gfi=settings,
            warmup_epochs=5,
            plugins=[Watch()],
            lr=1e-3,
        )
        s.train(transfer.train_stream)
        distances.append(
            sum(
                (watch[Stage.SOURCE][n] - watch[Stage.COUPLED][n]).square().sum()
                for n in model.decoder_parameters()
            )
        )
    assert distances[1] < 0.7 * distances[0]


def test_it_learns(transfer):
    model = coupled()
    s = strategy(model, train_epochs=12, alternate="iteration", warmup_epochs=3)
    s.train(transfer.train_stream)
    dataset = transfer.test_stream[0].dataset
    x = torch.stack([row[0] for row in dataset])
    y = torch.tensor([row[1] for row in dataset])
    model.eval()
    with torch.no_grad():
        assert (model(x).argmax(1) == y).float().mean() > 0.9
        error = (model.reconstruct_source(x) - x).square().mean()
    assert error < x.var()


def test_adaptation_classifies_source_rows_and_reconstructs_target_rows(adaptation):
    seen = {"reconstruct": [], "classify": []}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            key = "classify" if strategy.stage is Stage.CLASSIFY else "reconstruct"
            seen[key] += strategy.mb_y.tolist()

    strategy(plugins=[Watch()], variant="e").train(adaptation.train_stream)
    assert len(seen["reconstruct"]) == 60 and set(seen["reconstruct"]) == {-1}
    assert len(seen["classify"]) == 45 and min(seen["classify"]) == 0


def test_without_a_source_network_it_reconstructs_the_image_itself(transfer):
    model = coupled(source=False, target=CICNN(3, SHAPE, width=0.25))
    s = strategy(model, train_epochs=12, variant="gfi")
    s.train(transfer.train_stream)
    assert "L_rs" not in s.round_losses and s.importance.keys() == {"GFI3"}
    x = torch.stack([row[0] for row in transfer.test_stream[0].dataset])
    assert (model.reconstruct_target(x) - x).square().mean() < x.var()


def test_rounds_are_epochs_for_clock_evaluation_and_schedulers(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluations = []

    class Watch(SupervisedPlugin):
        def after_eval(self, strategy, *args, **kwargs):
            evaluations.append(strategy.clock.train_exp_epochs)

    scheduler = LRSchedulerPlugin(
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), reset_lr=False
    )
    s = strategy(
        model,
        optimizer=optimizer,
        train_epochs=3,
        eval_every=1,
        plugins=[scheduler, Watch()],
        variant="e",
    )
    s.train(transfer.train_stream, eval_streams=[transfer.test_stream])
    assert s.clock.train_exp_epochs == 3
    assert s.clock.train_iterations == 3  # stage 3 has one mini-batch of 15 rows
    # The host clocks its periodic evaluation before the clock itself counts the epoch.
    assert len(evaluations) == 4
    rates = [
        o.param_groups[0]["lr"]
        for o in (s.optimizer, s.optimizers["stage 1"].optimizer, s.optimizers["stage 2"].optimizer)
    ]
    assert rates[0] == pytest.approx(0.0125)
    assert rates[1] == rates[2] == pytest.approx(0.025)  # as of its last step


def test_stages_make_the_passes_they_are_told(transfer):
    steps = {stage: 0 for stage in Stage}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            steps[strategy.stage] += 1

    s = strategy(variant="e", stage_epochs=(1, 2, 3), plugins=[Watch()])
    s.train(transfer.train_stream)
    assert steps[Stage.COUPLED] == 2 * 4 and steps[Stage.CLASSIFY] == 3 * 1


def test_stages_have_their_own_moments(transfer):
    s = strategy(variant="e")
    s.train(transfer.train_stream)
    head = s.model.target.module.head.weight
    own = s.optimizer.state[head]["exp_avg"]
    hidden = s.model.target.module.hidden[1].weight
    coupled_state = s.optimizers["stage 2"].optimizer.state
    assert own.abs().sum() > 0
    assert not torch.equal(s.optimizer.state[hidden]["exp_avg"], coupled_state[hidden]["exp_avg"])
    decoder = s.model.decoder.layers[0].weight
    source_state = s.optimizers["stage 1"].optimizer.state
    assert not torch.equal(source_state[decoder]["exp_avg"], coupled_state[decoder]["exp_avg"])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.001),
    ],
)
def test_other_optimizers(transfer, make):
    model = coupled()
    strategy(model, optimizer=make(model.parameters())).train(transfer.train_stream)


def test_parameter_groups_keep_their_settings_in_every_stage(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(
        [
            {"params": list(model.decoder_parameters().values()), "lr": 0.0},
            {"params": list(model.target_parameters().values()), "lr": 0.1},
        ],
        lr=0.5,
    )
    before = snapshot(model)
    strategy(model, optimizer=optimizer, variant="e").train(transfer.train_stream)
    assert moved(model, before) and all(n.startswith("target.") for n in moved(model, before))


PLUGINS = {
    "EWC": lambda: EWCPlugin(ewc_lambda=1.0),
    "EWC online": lambda: EWCPlugin(ewc_lambda=1.0, mode="online", decay_factor=0.5),
    "LwF": lambda: LwFPlugin(alpha=1.0, temperature=2.0),
    "Replay": lambda: ReplayPlugin(mem_size=20),
    "SI": lambda: SynapticIntelligencePlugin(si_lambda=1e-3),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_stock_plugins_ride_along_over_several_experiences(digits, name):
    from avalanche.benchmarks import (
        benchmark_from_datasets,
        with_classes_timeline,
        with_task_labels,
    )

    sets = [
        transfer_benchmark(digits(40, seed=i), digits(20), labels_per_class=4)
        .train_stream[0]
        .dataset
        for i in range(3)
    ]
    benchmark = with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets)))
    s = strategy(train_epochs=2, plugins=[PLUGINS[name]()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in benchmark.train_stream:
            s.train(experience)
    assert s.clock.train_exp_counter == 3
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_ewc_holds_the_target_in_stage_2_as_well(digits):
    benchmark = transfer_benchmark(digits(40), digits(20), labels_per_class=4)
    penalties = {}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            penalties.setdefault(strategy.stage, []).append(float(strategy.loss.detach()))

    results = []
    for strength in (0.0, 1e6):
        penalties.clear()
        s = strategy(plugins=[EWCPlugin(ewc_lambda=strength), Watch()], variant="e", lr=1e-3)
        s.train(benchmark.train_stream)
        s.train(benchmark.train_stream)
        results.append(copy.deepcopy(penalties))
    assert results[1][Stage.COUPLED][-1] > results[0][Stage.COUPLED][-1]


def test_early_stopping_counts_rounds(transfer):
    from avalanche.evaluation.metrics import accuracy_metrics

    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    stop = EarlyStoppingPlugin(
        patience=1, val_stream_name="test_stream", metric_name="Top1_Acc_Stream"
    )
    s = strategy(
        lr=0.0, train_epochs=9, eval_every=1, evaluator=evaluator, plugins=[stop], variant="e"
    )
    s.train(transfer.train_stream, eval_streams=[transfer.test_stream])
    assert 1 <= s.clock.train_exp_epochs < 9


def test_a_stop_in_the_last_epoch_does_not_silence_the_next_experience(transfer):
    class Stop(SupervisedPlugin):
        def after_training_iteration(self, strategy, *args, **kwargs):
            strategy.stop_training()

    s = strategy(plugins=[Stop()], variant="e")
    s.train([transfer.train_stream[0], transfer.train_stream[0]])
    before = snapshot(s.model)
    s.train(transfer.train_stream)
    assert moved(s.model, before)


def test_callers_plugin_list_is_left_alone(transfer):
    plugins = [SupervisedPlugin()]
    strategy(plugins=plugins)
    assert len(plugins) == 1


def test_a_script_with_naive_needs_no_other_change(digits):
    """Only the class and the model change; the benchmark has no domain labels."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    def run(kind, model):
        images, labels = digits(30)
        data = TensorDataset(images, labels)
        data.targets = labels.tolist()
        benchmark = benchmark_from_datasets(
            train=[as_classification_dataset(data)], test=[as_classification_dataset(data)]
        )
        evaluator = EvaluationPlugin(
            accuracy_metrics(epoch=True, stream=True), loss_metrics(minibatch=True)
        )
        s = kind(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), 1e-2),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=8,
            train_epochs=6,
            eval_mb_size=8,
            device="cpu",
            evaluator=evaluator,
        )
        for experience in benchmark.train_stream:
            s.train(experience)
        return s.eval(benchmark.test_stream)

    plain = run(Naive, CICNN(3, SHAPE, width=0.1))
    ours = run(CETLStrategy, coupled(target=CICNN(3, SHAPE, width=0.1)))
    assert plain.keys() == ours.keys()
    assert ours["Top1_Acc_Stream/eval_phase/test_stream"] > 0.5


@pytest.mark.parametrize("count", [3, 17])
@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_tiny_sets_and_a_last_batch_of_one_with_batch_norm(digits, count, alternate):
    torch.manual_seed(0)
    target = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    benchmark = transfer_benchmark(digits(count), digits(6))
    s = strategy(coupled(target=target), train_mb_size=16, alternate=alternate)
    s.train(benchmark.train_stream)
    assert all(torch.isfinite(p).all() for p in s.model.parameters())
    assert s.model.target.module[5].training


def test_no_unlabelled_rows_work(digits):
    strategy().train(transfer_benchmark(digits(20), digits(6)).train_stream)


def test_no_labelled_rows_say_what_is_missing(digits):
    experience = transfer_benchmark(digits(20), digits(6), labels_per_class=1).train_stream[0]
    hidden = [i for i, label in enumerate(experience.dataset.targets) if label < 0]
    experience._dataset = experience.dataset.subset(hidden)
    with pytest.raises(ValueError, match="no labelled row"):
        strategy().train(experience)


def test_no_target_rows_say_what_is_missing(adaptation):
    with pytest.raises(ValueError, match="domain 0"):
        strategy().train(adaptation.source_stream)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"variant": "best"}, ValueError, "'gfi'"),
        ({"alternate": "never"}, ValueError, "iteration"),
        ({"dwa_lambda": -1}, ValueError, "dwa_lambda"),
        ({"dwa_lambda": float("nan")}, ValueError, "finite"),
        ({"loss_weights": (1, 1)}, ValueError, "three"),
        ({"loss_weights": (1, -1, 1)}, ValueError, "three"),
        ({"warmup_epochs": -1}, ValueError, "warmup"),
        ({"warmup_epochs": 0, "variant": "f"}, ValueError, "warmup"),
        ({"input_noise": 1.0}, ValueError, "input_noise"),
        ({"fixed_goal": True, "alternate": "iteration"}, ValueError, "fixed_goal"),
        ({"lr_factors": (1.0, 0.0)}, ValueError, "lr_factors"),
        ({"lr_factors": (1.0,)}, ValueError, "lr_factors"),
        ({"fixed_goal": True, "variant": "joint"}, ValueError, "fixed_goal"),
        ({"stage_epochs": (1, 0, 1)}, ValueError, "stage_epochs"),
        ({"stage_epochs": (1, 1, 2), "alternate": "iteration"}, ValueError, "epoch"),
        ({"gfi": {"samples": 3}}, TypeError, "GFISettings"),
        ({"model": nn.Linear(2, 2)}, TypeError, "CoupledModel"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        strategy(**arguments)


def test_an_optimizer_whose_groups_leave_parameters_out_is_named():
    model = coupled()
    first, *rest = model.target_parameters().values()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1)
    with pytest.raises(ValueError, match="decoder_parameters"):
        strategy(model, optimizer=optimizer)


def test_an_optimizer_of_one_group_gets_the_decoder_added(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.target.parameters(), lr=0.1)
    before = snapshot(model)
    strategy(model, optimizer=optimizer, variant="e").train(transfer.train_stream)
    assert any(name.startswith("decoder.") for name in moved(model, before))


@pytest.mark.parametrize(
    "arguments",
    [
        {"threshold": 2.0},
        {"probability": -0.5},
        {"estimator": "kernel"},
        {"fisher": "exact"},
        {"samples": 1},
        {"refresh_every": 0},
    ],
)
def test_bad_gfi_settings(arguments):
    with pytest.raises(ValueError):
        GFISettings(**arguments)


def test_wrong_image_shape_is_named(digits):
    benchmark = transfer_benchmark(digits(12, size=9), digits(6, size=9))
    with pytest.raises(ValueError, match=r"\(1, 9, 9\).*\(1, 8, 8\)"):
        strategy().train(benchmark.train_stream)


def test_labels_outside_the_classes_are_named(digits):
    images, labels = digits(12)
    benchmark = transfer_benchmark((images, 2 * labels), (images, 2 * labels))
    with pytest.raises(ValueError, match=r"label 4.*3 outputs"):
        strategy().train(benchmark.train_stream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(digits, value):
    images, labels = digits(12)
    images[3, 0, 0, 0] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        strategy().train(transfer_benchmark((images, labels), digits(6)).train_stream)


def test_a_diverging_loss_stops_with_stage_epoch_and_name(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e12)
    with pytest.raises(NonFiniteLossError, match=r"L_\w+ became .* in stage \d, epoch \d"):
        strategy(model, optimizer=optimizer, train_epochs=9).train(transfer.train_stream)


@pytest.mark.parametrize(
    "settings",
    [
        {"fisher": "empirical"},
        {"estimator": "rank", "threshold": Quantile(0.7)},
        {"estimator": "histogram", "normalize_samples": True},
        {"normalize": False, "refresh_every": 2},
    ],
)
def test_gfi_settings_are_used(transfer, settings):
    s = strategy(gfi=GFISettings(samples=12, **settings), train_epochs=2)
    s.train(transfer.train_stream)
    shares = s.importance["GFI1"]
    if "threshold" in settings:
        total = sum(shares.shared[n] * shares.sizes[n] for n in shares.sizes)
        assert 0 < total / sum(shares.sizes.values()) <= 0.3 + 1e-3


@pytest.mark.parametrize("alternate", ["epoch", "iteration"])
def test_the_same_seed_gives_the_same_weights(transfer, alternate):
    results = []
    for _ in range(2):
        model = coupled()
        torch.manual_seed(7)
        strategy(model, alternate=alternate, input_noise=0.3, train_epochs=2).train(
            transfer.train_stream
        )
        results.append(snapshot(model))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_matching_hidden_layers_brings_them_together(transfer):
    x = torch.stack([row[0] for row in transfer.test_stream[0].dataset])
    distances = []
    for weight in (0.0, 1.0):
        model = coupled(target=CICNN(3, SHAPE, width=0.2))
        hints = [DecoderHints(weight)] if weight else []
        s = strategy(model, variant="f", warmup_epochs=10, train_epochs=8, plugins=hints)
        s.train(transfer.train_stream)
        assert ("L_hint" in s.round_losses) == (weight > 0)
        model.eval()
        with torch.no_grad():
            goal = model.decoder.forward_hidden(model.source_code(x))[1][0]
            mine = model.decoder.forward_hidden(model.target_code(x)[0])[1][0]
        distances.append(float((mine - goal).square().mean() / goal.square().mean()))
    assert distances[1] < distances[0]


def test_the_source_runs_once_for_a_batch_that_two_stages_read(transfer):
    model = coupled()
    calls = []
    model.source.register_forward_hook(lambda _m, args, _o: calls.append(len(args[0])))
    s = strategy(model, variant="e", warmup_epochs=0, alternate="iteration")
    s.train(transfer.train_stream)
    assert sum(calls) == 2 * 60  # once for the feature statistics, once in training


def test_noise_hides_pixels_from_the_target_only(transfer):
    model = coupled()
    seen = []
    handle = model.target.module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    s = strategy(model, input_noise=0.5, variant="e", warmup_epochs=0)
    s.train(transfer.train_stream)
    handle.remove()
    zeros = [float((x == 0).float().mean()) for x in seen]
    assert max(zeros) > 0.4 and min(zeros) < 0.01


@pytest.mark.parametrize("variant", ["e", "joint"])
def test_augmented_views_reach_the_target_only(transfer, variant):
    model = coupled()
    seen = {"target": [], "source": [], "L_rs": []}

    class Watch(CETLPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            if strategy.coupled is not None:
                seen["L_rs"].append(strategy.coupled.images)

    def watch(name):
        return lambda _m, args: seen[name].append(args[0])

    model.source.register_forward_pre_hook(watch("source"))
    model.target.module.register_forward_pre_hook(watch("target"))
    s = strategy(model, variant=variant, augment=lambda x: x + 10.0, plugins=[Watch()])
    s.train(transfer.train_stream)
    assert all(x.max() < 5 for x in seen["source"] + seen["L_rs"])
    training = [x for x in seen["target"] if x.max() > 5]
    assert sum(map(len, training)) == 60 + (15 if variant == "e" else 60)
    with pytest.raises(ValueError, match="augment= changed"):
        strategy(coupled(), augment=lambda x: x[:, :, 1:]).train(transfer.train_stream)


def test_a_fixed_goal_is_that_of_stage_1(transfer):
    model = coupled()
    goals, wanted = [], []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            self.old = copy.deepcopy(model)

        def before_backward(self, strategy, *args, **kwargs):
            if strategy.stage is Stage.COUPLED:
                step = strategy.coupled
                goals.append(step.goal)
                wanted.append(self.old.reconstruct_source(features=step.features).detach())

    settings = {"variant": "e", "train_epochs": 2, "plugins": [Watch()]}
    strategy(model, fixed_goal=True, **settings).train(transfer.train_stream)
    torch.testing.assert_close(goals, wanted)
    assert all(not p.requires_grad for p in model.source.parameters())
    goals.clear(), wanted.clear()
    strategy(model, **settings).train(transfer.train_stream)
    assert not torch.allclose(goals[-1], wanted[-1])


def test_learning_rates_of_the_stages(transfer):
    def after(stage, **settings):
        torch.manual_seed(0)
        model = coupled()
        moves = []

        class Watch(CETLPlugin):
            def before_stage(self, strategy, *args, **kwargs):
                self.before = snapshot(model)

            def after_stage(self, strategy, *args, **kwargs):
                if strategy.stage is stage:
                    new = dict(model.named_parameters())
                    moves.append(
                        sum(float((new[n].detach() - p).norm()) for n, p in self.before.items())
                    )

        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        settings = {"variant": "e", "plugins": [Watch()], **settings}
        strategy(model, optimizer=optimizer, train_mb_size=60, **settings).train(
            transfer.train_stream
        )
        return moves[0]

    for stage, factors in ((Stage.SOURCE, (0.1, 1.0)), (Stage.COUPLED, (1.0, 0.1))):
        assert after(stage, lr_factors=factors) == pytest.approx(0.1 * after(stage), rel=0.03)


def test_a_copied_strategy_trains_as_the_first_one_and_apart_from_it(transfer):
    first = strategy(variant="gfi", train_epochs=1)
    first.train(transfer.train_stream)
    second = copy.deepcopy(first)
    for one in (first, second):
        torch.manual_seed(5)
        one.train(transfer.train_stream)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(a is not b and torch.equal(a, b) for a, b in pairs)
    assert second.networks.model is second.model


def test_options_that_are_set_later_are_used_and_checked(transfer):
    one = strategy(variant="e", warmup_epochs=3)
    one.warmup_epochs, one.train_epochs = 0, 2
    one.train(transfer.train_stream)
    assert one.recipe.warmup_epochs == 0 and one.clock.train_exp_epochs == 2
    with pytest.raises(ValueError, match="input_noise=2"):
        one.input_noise = 2
    one.dwa_lambda = 0.5
    assert one.allocation.strength == 0.5
