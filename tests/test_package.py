import re
from pathlib import Path

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


def test_importing_needs_neither_onnxruntime_nor_mlxtend(partners):
    # A partner has imported the package, and nothing else of what these tests need.
    partners.start(
        """
        import sys
        assert "avalanche_cetl.training" in sys.modules
        assert not {"onnxruntime", "mlxtend"} & sys.modules.keys()
        """
    )
    partners.succeed()


def test_lower_layers_do_not_import_avalanche(partners):
    partners.start(
        """
        import sys
        for name in [n for n in sys.modules if n.split(".")[0] in ("avalanche", "avalanche_cetl")]:
            del sys.modules[name]
        sys.modules["avalanche"] = None
        import importlib.util
        package = importlib.util.find_spec("avalanche_cetl")
        module = type(sys)("avalanche_cetl")
        module.__path__ = list(package.submodule_search_locations)
        sys.modules["avalanche_cetl"] = module
        import avalanche_cetl.information, avalanche_cetl.models, avalanche_cetl.encoders
        """
    )
    partners.succeed()


def test_the_readmes_script_runs_as_it_stands(capsys):
    script = re.search(r"<!-- script -->\n```python\n(.*?)```", README.read_text(), re.S)[1]
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    exec(compile(script, "README.md", "exec"), {})
    assert "Top1_Acc_Stream/eval_phase/test_stream" in capsys.readouterr().out


def test_the_readmes_own_encoder_runs_as_it_stands(tmp_path, digits):
    script = re.search(r"<!-- encoder -->\n```python\n(.*?)```", README.read_text(), re.S)[1]
    assert len([line for line in script.splitlines() if line.strip()]) < 30
    names = {}
    exec(compile(script, "README.md", "exec"), names)
    encoder = names["Downscaled"](6)
    benchmark = avalanche_cetl.transfer_benchmark(digits(20), digits(8))
    stored = avalanche_cetl.with_source_features(benchmark, encoder, tmp_path)
    assert stored.train_stream[0].dataset[0][2].shape == (encoder.dim,)
    assert encoder.fingerprint() != names["Downscaled"](7).fingerprint()


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
