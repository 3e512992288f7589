import inspect
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from avalanche.training.supervised import Naive

import avalanche_cetl

README = Path(__file__).parents[1] / "README.md"


def test_public_names_exist_and_are_documented():
    for name in avalanche_cetl.__all__:
        assert getattr(avalanche_cetl, name).__doc__, name
    assert len(set(avalanche_cetl.__all__)) == len(avalanche_cetl.__all__)


CONTRACT = """
    CETLStrategy GFIPlugin GFI CETLPlugin GFISettings CoupledModel CICNN ResNet26 ReversedDecoder
    as_target TimmEncoder ModuleEncoder ONNXEncoder PrecomputedEncoder Encoder with_source_features
    transfer_benchmark distillation_benchmark adaptation_benchmark paper_benchmark plot_benchmark
    with_mixed_images mixed_images linear_probe SoftTargets DecoderHints FitNetsHints
    ViewConsistency fisher_information relative_fisher generalized_fisher dwa_penalty Quantile
    cetl_metrics gfi_metrics bound_metrics validator_metrics save_checkpoint load_checkpoint
    CheckpointPlugin
"""


def test_the_names_of_version_0_1_import_from_the_top():
    assert set(CONTRACT.split()) <= set(avalanche_cetl.__all__)


def test_every_public_name_is_an_attribute_that_dir_shows():
    assert {*avalanche_cetl.__all__, "__version__"} <= set(dir(avalanche_cetl))
    found = dict(inspect.getmembers(avalanche_cetl))
    for name in avalanche_cetl.__all__:
        assert found[name] is getattr(avalanche_cetl, name), name
    assert avalanche_cetl.CETLStrategy is avalanche_cetl.training.CETLStrategy
    assert avalanche_cetl.TimmEncoder is avalanche_cetl.encoders.timm.TimmEncoder


def test_a_star_imports_all_public_names():
    names = {}
    exec("from avalanche_cetl import *", names)
    assert names.keys() - {"__builtins__"} == set(avalanche_cetl.__all__)


def test_public_classes_and_functions_are_pickled_by_name():
    for name in avalanche_cetl.__all__:
        thing = getattr(avalanche_cetl, name)
        assert pickle.loads(pickle.dumps(thing)) is thing


def test_an_unknown_name_is_an_attribute_error_with_the_nearest_name():
    assert not hasattr(avalanche_cetl, "nothing")
    with pytest.raises(AttributeError, match="'avalanche_cetl' has no attribute 'CETLstrategy'"):
        avalanche_cetl.CETLstrategy  # noqa: B018
    with pytest.raises(ImportError, match="CETLstrategy"):
        exec("from avalanche_cetl import CETLstrategy")


#: Statements, and what importing them does not bring with it. One after another in one process:
#: each may bring what those before it may. Avalanche's and timm's networks come apart, at last.
HEAVY = {"avalanche", "timm", "matplotlib", "sklearn", "onnxruntime"}
WITHOUT = [
    ("import avalanche_cetl, avalanche_cetl.encoders, avalanche_cetl.features", {"torch", *HEAVY}),
    ("from avalanche_cetl import __version__", {"torch", *HEAVY}),
    ("from avalanche_cetl.information import fisher_information", {"torchvision", *HEAVY}),
    ("from avalanche_cetl import generalized_fisher, dwa_penalty", {"torchvision", *HEAVY}),
    ("from avalanche_cetl import CoupledModel, as_target, ModuleEncoder", {"torchvision", *HEAVY}),
    ("from avalanche_cetl import WeightPenalty", {"torchvision", *HEAVY}),
    (
        "import torch, avalanche_cetl; model = torch.nn.Linear(2, 2); "
        "avalanche_cetl.WeightPenalty(1.0).remember(model, torch.rand(8, 2))",
        {"torchvision", *HEAVY},
    ),
    ("from avalanche_cetl import ONNXEncoder, PrecomputedEncoder, linear_probe", HEAVY),
    ("from avalanche_cetl.features import FeatureStoreError, default_cache_dir", HEAVY),
]
APART = [
    ("from avalanche_cetl import TimmEncoder", HEAVY - {"timm"}),
    ("from avalanche_cetl import CETLStrategy, GFIPlugin", {"timm", "onnxruntime", "sklearn"}),
]
CHECKED = """
import json, os, sys
together, apart = json.loads(sys.argv[1])
def check(statement, forbidden):
    exec(statement, {})
    assert not sys.modules.keys() & set(forbidden), statement
for row in together:
    check(*row)
for row in apart:
    child = os.fork()
    if child == 0:
        check(*row)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, row
"""


def test_an_import_brings_only_what_it_needs(fresh):
    rows = [[(code, sorted(names)) for code, names in part] for part in (WITHOUT, APART)]
    ended = fresh(CHECKED, json.dumps(rows))
    assert ended.code == 0, ended.errors
    assert "avalanche_cetl" in ended.modules


def test_no_public_name_needs_onnxruntime_or_mlxtend(partners):
    # A partner has imported all public names, and nothing else of what these tests need.
    partners.start(
        """
        import sys
        assert {"avalanche_cetl.training", "avalanche_cetl.encoders.timm"} <= sys.modules.keys()
        assert not {"onnxruntime", "mlxtend"} & sys.modules.keys()
        """
    )
    partners.succeed()


def script_of(name):
    """The script of a block of the README, which is short."""
    script = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", README.read_text(), re.S)[1]
    assert len([line for line in script.splitlines() if line.strip()]) < 30
    return script


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_the_files_that_the_readme_links_are_there():
    links = [one.split("#")[0] for one in re.findall(r"\]\(([^)\s]+)\)", README.read_text())]
    local = [link for link in links if not re.match(r"https?:", link)]
    if not (README.parent / "docs").is_dir():
        pytest.skip("the pages are in the repository")
    assert local and not [link for link in local if not (README.parent / link).exists()]


def test_the_readmes_script_runs_as_it_stands_and_the_source_network_helps(capsys):
    names = {}
    exec(compile(script_of("script"), "README.md", "exec"), names)
    shown = re.findall(r": (\d+\.\d) %", capsys.readouterr().out)
    trained_source, alone, helped = map(float, shown)
    assert trained_source > 85 and alone + 2 < helped


def test_the_readmes_script_for_continual_learning_runs(capsys, digits):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    names = {"Naive": Naive, "model": network, "optimizer": optimizer}
    exec(compile(script_of("continual script"), "README.md", "exec"), names)
    tasks = [digits(20), digits(20, seed=1)]
    for experience in avalanche_cetl.transfer_benchmark(tasks, tasks).train_stream:
        names["strategy"].train(experience)
    assert names["plugins"][0].bases


def test_examples_in_docstrings_run():
    import doctest
    import importlib
    import pkgutil

    ran = 0
    for module in pkgutil.walk_packages(avalanche_cetl.__path__, "avalanche_cetl."):
        if module.name.endswith("__main__"):
            continue
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0, module.name
        ran += result.attempted
    assert ran >= 5
