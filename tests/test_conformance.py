"""Avalanche's own tests, from its wheel, with CETLStrategy in the place of Naive.

A factory couples the test's plain network with a small frozen source and puts
:class:`CETLStrategy` where the test says ``Naive``. Left out, with the reason:

- The multi-task halves of tests build ``MTSimpleMLP``, whose forward pass takes task labels. The
  factory couples a network as a subclass with one head, so it gives those to the stock Naive;
  coupled networks with heads by task are tested in ``training/test_multi_task.py``.
- ``DynamicOptimizersTests.test_checkpointing`` uses Avalanche's own checkpoints, which pickle
  the strategy and fail on current torch for Naive as well.
- ``test_optimizer_groups_rename`` and ``test_optimizers`` run on multi-task networks only.
- Tests of other strategies (Cumulative, ICaRL ...) do not run Naive's code.

Helped along: ``test_scheduler_plugin`` trains with a learning rate of 4, at which
reconstruction diverges, so its reconstruction losses are weighted down and it runs without
DWA; ``test_feature_distillation`` reads ``model.features``, which the coupled model of this
suite hands on from T2.
"""

import functools
import importlib
import os
import sys
import unittest

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.models.dynamic_modules import MultiTaskModule
from avalanche.training.supervised import Naive as StockNaive
from torch import nn

from avalanche_cetl import GFI, CETLStrategy, CoupledModel, GFIPlugin, GFISettings, ModuleEncoder

os.environ.setdefault("FAST_TEST", "True")


class _HandsFeaturesOn(CoupledModel):
    @property
    def features(self):
        return self.target.module.features

    @features.setter
    def features(self, value):
        self.target.module.features = value


def _coupled(model):
    width = next(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
    source = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 2))
    encoder = ModuleEncoder(source, input_shape=(width,))
    return _HandsFeaturesOn.build(encoder, model, (width,))


class CoupledNaive(CETLStrategy):
    """Takes Naive's arguments; couples the model with a random source first."""

    extra = {}

    def __new__(cls, *args, model=None, **kwargs):
        network = args[0] if args else model
        if any(
            isinstance(m, MultiTaskModule) and not isinstance(m, IncrementalClassifier)
            for m in network.modules()
        ):
            return StockNaive(*args, **({} if model is None else {"model": model}), **kwargs)
        return super().__new__(cls)

    def __init__(self, *, model, optimizer, **kwargs):
        model = _coupled(model)
        if len(optimizer.param_groups) > 1:
            # Several groups: nobody but the user can say which one T1 belongs to.
            optimizer.param_groups[1]["params"] += model.decoder_parameters().values()
        gfi = GFISettings(samples=4)
        if kwargs.get("peval_mode") != "iteration":  # which counts mini-batches
            kwargs.setdefault("train_mb_size", 6)  # with Avalanche's 1 it takes three times as long
        super().__init__(
            model=model, optimizer=optimizer, preset="paper", gfi=gfi, **self.extra, **kwargs
        )


class GFIAsEWC(GFI):
    """Takes EWC's arguments."""

    def __init__(self, *, model, optimizer, criterion, ewc_lambda, **kwargs):
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            dwa_lambda=ewc_lambda,
            gfi={"samples": 8},
            **kwargs,
        )


class NaiveWithGFI(StockNaive):
    """Naive with the plugin attached."""

    def __init__(self, *, model, optimizer, plugins=None, **kwargs):
        plugins = [*(plugins or []), GFIPlugin(0.1, samples=8)]
        super().__init__(model=model, optimizer=optimizer, plugins=plugins, **kwargs)


CASES = [
    ("tests.training.test_plugins", "PluginTests", "test_callback_reachability"),
    ("tests.training.test_plugins", "PluginTests", "test_scheduler_plugin"),
    ("tests.training.test_strategies", "BaseStrategyTest", "test_periodic_eval"),
    ("tests.training.test_strategies", "BaseStrategyTest", "test_plugins_compatibility_checks"),
    ("tests.training.test_strategies", "BaseStrategyTest", "test_forward_hooks"),
    ("tests.training.test_strategies", "StrategyTest", "test_naive"),
    ("tests.training.test_strategies", "StrategyTest", "test_rwalk"),
    ("tests.training.test_strategies", "StrategyTest", "test_feature_distillation"),
    ("tests.training.test_stream_completeness", "TestStreamCompleteness", "test_raise_error"),
    ("tests.training.test_stream_completeness", "TestStreamCompleteness", "test_no_errors"),
    ("tests.test_optimizer", "DynamicOptimizersTests", "test_optimizer_update"),
    ("tests.test_optimizer", "DynamicOptimizersTests", "test_optimizer_groups_clf_til"),
    ("tests.test_optimizer", "DynamicOptimizersTests", "test_optimizer_groups_clf_cil"),
    ("tests.test_optimizer", "DynamicOptimizersTests", "test_optimizer_groups_manual_addition"),
]


@pytest.fixture
def wheel_module(monkeypatch):
    """Import from the wheel's package `tests`, whose name pytest has given to this folder."""

    def load(name):
        for known in [k for k in sys.modules if k == "tests" or k.startswith("tests.")]:
            monkeypatch.delitem(sys.modules, known)
        module = importlib.import_module(name)
        for imported in [k for k in sys.modules if k == "tests" or k.startswith("tests.")]:
            # Registered so that it goes again when the test ends.
            monkeypatch.setitem(sys.modules, imported, sys.modules.pop(imported))
        return module

    return load


def _run(suite_module, case, test):
    suite = unittest.TestSuite([getattr(suite_module, case)(test)])
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun == 1 and not result.skipped
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "case", "test"), CASES, ids=[c[2] for c in CASES])
def test_avalanches_own_tests_pass_with_cetl_in_the_place_of_naive(
    module, case, test, monkeypatch, wheel_module
):
    torch.manual_seed(0)
    suite_module = wheel_module(module)
    monkeypatch.setattr(suite_module, "Naive", CoupledNaive)
    if case == "TestStreamCompleteness":  # trains in mini-batches of one
        few = functools.partial(suite_module.get_fast_benchmark, n_samples_per_class=20)
        monkeypatch.setattr(suite_module, "get_fast_benchmark", few)
    if test == "test_scheduler_plugin":
        monkeypatch.setattr(
            CoupledNaive, "extra", {"variant": "e", "loss_weights": (1e-3, 1, 1e-3)}
        )
    _run(suite_module, case, test)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("test", ["test_ewc", "test_ewc_online"])
def test_avalanches_tests_of_ewc_pass_with_gfi_in_its_place(test, monkeypatch, wheel_module):
    torch.manual_seed(0)
    suite_module = wheel_module("tests.training.test_strategies")
    monkeypatch.setattr(suite_module, "EWC", GFIAsEWC)
    _run(suite_module, "StrategyTest", test)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("module", "case", "test"),
    [
        ("tests.training.test_plugins", "PluginTests", "test_callback_reachability"),
        (
            "tests.training.test_strategies",
            "BaseStrategyTest",
            "test_plugins_compatibility_checks",
        ),
    ],
)
def test_avalanches_own_tests_pass_with_the_gfi_plugin_on_naive(
    module, case, test, monkeypatch, wheel_module
):
    torch.manual_seed(0)
    suite_module = wheel_module(module)
    monkeypatch.setattr(suite_module, "Naive", NaiveWithGFI)
    _run(suite_module, case, test)
