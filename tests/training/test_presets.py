import copy
import json
import pickle
import warnings

import pytest
import torch
from coupled_runs import coupled

from avalanche_cetl import (
    CETLStrategy,
    DecoderHints,
    GFISettings,
    LossPlugin,
    SoftTargets,
    ViewConsistency,
    adaptation_benchmark,
    transfer_benchmark,
    with_mixed_images,
)
from avalanche_cetl.training import (
    ClassifyStage,
    CoupledStage,
    MergedStage,
    SourceStage,
    TrainingStage,
    Variant,
)
from avalanche_cetl.training.presets import Preset, parse_preset


def _strategy(preset, **settings):
    model = coupled()
    return CETLStrategy(
        model=model, optimizer=torch.optim.Adam(model.parameters(), 1e-3), preset=preset,
        train_mb_size=16, evaluator=None, **settings,
    )  # fmt: skip


def _plugins(strategy, kind):
    return [plugin for plugin in strategy.plugins if isinstance(plugin, kind)]


def test_the_preset_of_the_paper_is_the_algorithm_and_nothing_else():
    s = _strategy("paper")
    assert not s.gfi.normalize and s.gfi.threshold == 0.5 and s.gfi.probability == 0.9
    assert not s.fixed_goal and s.warmup_epochs == 0 and s.input_noise == 0
    assert s.stage_epochs == (1, 1, 1) and s.variant.name == "gfi"
    assert s.lr_factors == (1.0, 1.0) and s.dwa_lambda == 1e-2
    assert not _plugins(s, (DecoderHints, SoftTargets, ViewConsistency))


def test_the_best_preset_with_a_decoder_has_its_plugins_and_what_is_given_stays():
    s = _strategy("best", variant="gfi")
    assert s.fixed_goal and s.warmup_epochs == 10 and s.gfi.normalize
    assert len(_plugins(s, DecoderHints)) == 1
    assert [p.rows for p in _plugins(s, ViewConsistency)] == ["unlabelled"]
    mine = ViewConsistency(3.0)
    s = _strategy(
        "best", warmup_epochs=0, dwa_lambda=0.0, fixed_goal=False, gfi=GFISettings(samples=7),
        lr_factors=(1.0, 0.5), input_noise=0.0, plugins=[mine], variant="gfi",
    )  # fmt: skip
    assert (s.warmup_epochs, s.dwa_lambda, s.fixed_goal, s.input_noise) == (0, 0.0, False, 0.0)
    assert s.gfi.samples == 7 and s.lr_factors == (1.0, 0.5)
    assert _plugins(s, ViewConsistency) == [mine]


def test_the_best_preset_has_soft_targets_of_a_probe_where_target_rows_have_labels(digits):
    s = _strategy("best", variant="gfi", train_epochs=1, warmup_epochs=1)
    (plugin,) = _plugins(s, SoftTargets)
    assert plugin.head == "probe" and plugin.rows == "target"
    data = with_mixed_images(transfer_benchmark(digits(30), digits(30, seed=1)), 2)
    s.train(data.train_stream)
    assert s.round_losses["L_soft"] > 0 and s.round_losses["L_view"] >= 0
    mine = SoftTargets(weight=1.0, temperature=4.0)
    assert _plugins(_strategy("best", variant="gfi", plugins=[mine]), SoftTargets) == [mine]


def test_a_preset_describes_its_values_and_plugins():
    found = parse_preset("best", "gfi").describe()
    json.dumps(found)
    assert found["fixed_goal"] and found["dwa_lambda"] == 0.03
    assert [one["class"] for one in found["plugins"]] == [
        "DecoderHints", "SoftTargets", "ViewConsistency"
    ]  # fmt: skip
    assert found["plugins"][2]["threshold"] == 0.968


GFI = {
    "threshold": 0.5, "probability": 0.9, "estimator": "gaussian", "fisher": "sampled",
    "samples": 256, "normalize": True, "normalize_samples": False, "refresh_every": 1, "seed": 0,
}  # fmt: skip


PLUGINS = [
    {"class": "DecoderHints", "weight": 1.0, "rows": "target"},
    {
        "class": "SoftTargets", "weight": 10.0, "rows": "target", "temperature": 2.0,
        "head": "probe",
    },
    {
        "class": "ViewConsistency", "weight": 10.0, "decay": 0.99, "threshold": 0.968,
        "balance": 0.05, "rampup_rounds": 6, "rows": "unlabelled",
    },
]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "dwa_lambda", "gfi", "warmup_epochs", "fixed_goal", "plugins"),
    [
        ("paper", 1e-2, GFI | {"normalize": False}, None, False, []),
        ("best", 0.03, GFI, 10, True, PLUGINS),
    ],
)
def test_result_files_find_a_preset_under_the_settings_that_they_name(
    preset, dwa_lambda, gfi, warmup_epochs, fixed_goal, plugins
):
    assert parse_preset(preset, "gfi").describe() == {
        "dwa_lambda": dwa_lambda,
        "gfi": gfi,
        "warmup_epochs": warmup_epochs,
        "input_noise": 0.0,
        "fixed_goal": fixed_goal,
        "lr_factors": (1.0, 1.0),
        "plugins": plugins,
    }


def test_a_preset_in_another_basis_says_so():
    kronecker = Preset(gfi=GFISettings(basis="kronecker", rank=8)).describe()["gfi"]
    assert kronecker == GFI | {"basis": "kronecker", "rank": 8, "threshold": 0.0, "probability": 1}


def test_strategies_do_not_share_the_plugins_of_a_preset():
    first, second = (_plugins(_strategy("best"), SoftTargets)[0] for _ in range(2))
    assert first is not second


@pytest.mark.parametrize(
    "settings", [{"variant": "e", "alternate": "iteration"}, {"variant": "joint"}]
)
def test_the_best_preset_leaves_a_goal_that_cannot_be_fixed(settings):
    assert not _strategy("best", **settings).fixed_goal


def pickled(strategy):
    return pickle.loads(pickle.dumps(strategy))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(
    "settings",
    [{"preset": "best"}, {"preset": "paper"}, {"preset": "best", "variant": "gfi"}],
    ids=["best", "paper", "best with a decoder"],
)
def test_a_copy_of_a_strategy_trains_as_the_strategy_itself(digits, settings, copied):
    data = transfer_benchmark([digits(12), digits(12, seed=1)], [digits(6)] * 2, labels_per_class=2)
    gfi = {} if settings == {"preset": "best"} else {"warmup_epochs": 1}
    strategies = [_strategy(**settings, **gfi) for _ in range(2)]
    strategies[1] = copied(strategies[1])
    for experience in data.train_stream:
        for s in strategies:
            torch.manual_seed(3)
            s.train(experience)
        strategies[1] = copied(strategies[1])
    one, other = (s.model.state_dict() for s in strategies)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("preset", ["paper", "best"])
@pytest.mark.parametrize("variant", ["gfi", "u", "joint"])
def test_presets_train_the_target_network(digits, preset, variant):
    data = adaptation_benchmark(digits(30, seed=1), digits(30, shift=0.1), digits(30, seed=2))
    s = _strategy(preset, variant=variant, train_epochs=2)
    before = [p.detach().clone() for p in s.model.target.parameters()]
    s.train(data.train_stream)
    pairs = zip(before, s.model.target.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert ("L_hint" in s.round_losses) == (preset == "best")


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"preset='bset'.*'best', 'paper'"):
        _strategy("bset")


@pytest.mark.parametrize(
    "option",
    [{"dwa_lambda": 0.1}, {"gfi": GFISettings(samples=8)}, {"alternate": "iteration"},
     {"stage_epochs": (1, 1, 2)}, {"lr_factors": (1.0, 0.5)}, {"warmup_epochs": 3},
     {"input_noise": 0.1}, {"fixed_goal": True}],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_an_option_that_means_nothing_without_the_decoder_brings_it(option):
    s = _strategy("best", **option)
    assert s.variant.name == "gfi" and _plugins(s, DecoderHints)
    assert s.recipe == _strategy("best", variant="gfi", **option).recipe
    name, value = next(iter(option.items()))
    direct = _strategy("best")
    assert direct.variant.name == "direct"
    with pytest.raises(ValueError, match="Give variant= when you make the strategy"):
        setattr(direct, name, value)


class Own(LossPlugin):
    """A loss that is 1, under a name."""

    def __init__(self, name, weight=1.0):
        super().__init__(weight, "target")
        self.name = name

    def loss(self, strategy, batch):
        return batch.logits.sum() * 0 + 1


class Other(Own):
    pass


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("", {}, "Own has no name for its loss"),
        ("L_c", {}, "Own records L_c, which the stages of variant 'direct' record themselves"),
        ("DWA1", {"variant": "gfi"}, "Own records DWA1, which the stages of variant 'gfi'"),
    ],
)
def test_a_name_that_is_taken_or_empty_is_refused(name, settings, told):
    with pytest.raises(ValueError, match=told):
        _strategy("best", plugins=[Own(name)], **settings)


def test_a_variant_that_takes_the_name_of_a_plugin_is_refused_and_nothing_changes():
    s = _strategy("paper", variant="u", plugins=[Own("L_rs")], warmup_epochs=1)
    with pytest.raises(ValueError, match="Own records L_rs"):
        s.variant = "e"
    assert s.variant.name == "u" and s.recipe.variant.name == "u"


def test_two_plugins_that_record_one_name_are_warned_of():
    with pytest.warns(UserWarning, match="Own and Other both record L_a"):
        _strategy("paper", plugins=[Own("L_a"), Other("L_a")])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*record")
        _strategy("best", plugins=[Own("L_a"), Other("L_b")])


@pytest.mark.parametrize(
    ("plugin", "level", "told"),
    [
        (Own("L_balance"), "WARNING", "Own takes the place of the preset's ViewConsistency"),
        (ViewConsistency(1.0), "INFO", "ViewConsistency takes the place of the preset's"),
    ],
    ids=["another class", "the same"],
)
def test_the_log_says_which_plugin_of_a_preset_gives_way(caplog, plugin, level, told):
    with caplog.at_level("INFO", "avalanche_cetl"):
        s = _strategy("best", variant="gfi", plugins=[plugin])
    (record,) = caplog.records
    assert told in record.getMessage() and record.levelname == level
    assert [p for p in s.plugins if "L_balance" in getattr(p, "names", ())] == [plugin]


class T2Alone(TrainingStage):
    """A stage that does not run T1."""

    name, trains, names = "alone", ("target",), ("L_alone",)

    def losses(self, networks, batch):
        return {"L_alone": networks.logits(batch.images, batch.tasks).square().mean()}


class Drawn(CoupledStage):
    """A stage that runs T1, and records another loss."""

    name, names = "drawn", ("L_drawn",)


@pytest.mark.parametrize(
    ("stages", "hints", "epochs"),
    [
        ((T2Alone(), ClassifyStage()), 0, 0),
        ((SourceStage(), ClassifyStage()), 0, 10),
        ((Drawn(("target",)), ClassifyStage()), 0, 10),
        ((MergedStage((ClassifyStage(), Drawn(("target",)))),), 0, 10),
        ((CoupledStage(), ClassifyStage()), 1, 10),
    ],
    ids=["no T1", "T1 of S", "T1 fixed", "merged", "T1 of T2"],
)
def test_a_variant_of_ones_own_has_hints_and_a_warm_up_where_t1_has_a_part(stages, hints, epochs):
    s = _strategy("best", variant=Variant("own", stages))
    assert len(_plugins(s, DecoderHints)) == hints and s.warmup_epochs == epochs
    assert _plugins(s, SoftTargets) and _plugins(s, ViewConsistency)


def test_a_strategy_with_hints_may_change_to_a_variant_without_t1():
    s = _strategy("best", variant="gfi")
    s.variant = Variant("own", (T2Alone(), ClassifyStage()))
    assert s.variant.name == "own" and len(_plugins(s, DecoderHints)) == 1


def test_training_without_t1_leaves_it_and_warns_of_nothing(digits):
    s = _strategy("best", variant=Variant("own", (T2Alone(), ClassifyStage())))
    before = {n: p.detach().clone() for n, p in s.model.decoder_parameters().items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*DecoderHints")
        s.train(transfer_benchmark(digits(12), digits(6)).train_stream)
    assert all(torch.equal(before[n], p) for n, p in s.model.decoder_parameters().items())
