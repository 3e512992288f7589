"""The page on extensions: every script on it runs, and is short."""

import re
from array import array
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_cetl import (
    CICNN,
    CheckpointError,
    CoupledModel,
    load_checkpoint,
    save_checkpoint,
    with_source_features,
)
from avalanche_cetl.information import register_estimator

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the page is in the repository")


def run(*names):
    """Run the named scripts of the page one after the other, and return their names."""
    found = {}
    torch.manual_seed(0)
    for name in ("start", *names):
        script = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.S)[1]
        assert len([line for line in script.splitlines() if line.strip()]) < 40, name
        exec(compile(script, PAGE.name, "exec"), found)
    return found


def test_a_variant_of_ones_own_records_the_losses_of_its_stages(capsys):
    found = run("stage", "variant")["cetl"]
    assert 0 < found.round_losses["L_sure"] < torch.log(torch.tensor(3.0))
    assert found.optimizers.keys() == {"stage 1", "stage 2", "sure"}
    assert {"L_sure", "L_rs", "L_rt", "L_c"} <= set(found.meters.names)


@pytest.mark.parametrize("scripts", [("stage", "variant"), ("stage", "module")])
def test_a_variant_of_ones_own_is_resumed(capsys, tmp_path, scripts):
    found = run(*scripts)
    made, benchmark, options = [], found["benchmark"], {"train_epochs": 1}
    if "noisy" in found:
        options["augment"] = found["noisy"]
    for _ in range(2):
        torch.manual_seed(1)
        made.append(found["strategy"](variant=found["cetl"].variant, **options))
    first, second = made
    for module in second.networks.modules.values():
        for parameter in module.parameters():
            parameter.data.zero_()  # the checkpoint has the head's weights too
    first.train(benchmark.train_stream)
    save_checkpoint(first, tmp_path / "saved.safetensors")
    first.train(benchmark.train_stream)
    load_checkpoint(second, tmp_path / "saved.safetensors")
    second.train(benchmark.train_stream)
    for one, other in [(first.model, second.model)] + [
        (module, second.networks.modules[label]) for label, module in first.networks.modules.items()
    ]:
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_a_stage_of_ones_own_leaves_t1_alone(capsys):
    found = run("stage", "variant")
    own = found["cetl"].optimizers["sure"].optimizer
    covered = {id(p) for group in own.param_groups for p in group["params"]}
    assert covered == {id(p) for p in found["cetl"].model.target_parameters().values()}


def test_a_head_of_a_stage_is_stepped_by_its_optimiser_at_its_rate(capsys):
    found = run("stage", "module")
    own, head = found["cetl"].optimizers["simclr"].optimizer, found["cetl"].networks.modules
    covered = {id(p) for group in own.param_groups for p in group["params"]}
    target = found["cetl"].model.target_parameters().values()
    assert covered == {id(p) for p in [*target, *head["simclr"].parameters()]}
    assert {group["lr"] for group in own.param_groups} == {0.5e-3}
    steps = {int(own.state[p]["step"]) for p in head["simclr"].parameters()}
    assert steps == {2 * 2 * 3}  # rounds, epochs, mini-batches


def test_a_loss_of_ones_own_on_target_rows_reaches_the_records(capsys):
    assert run("loss", "target loss")["cetl"].round_losses["L_spread"] > 0


def test_a_loss_of_ones_own_reaches_the_records_and_the_step(capsys):
    found = run("loss")
    plain = found["strategy"](train_epochs=1)
    assert found["cetl"].round_losses["L_margin"] > 0
    assert "L_margin" in found["cetl"].meters.names
    assert "L_margin" not in plain.meters.names


def test_an_encoder_of_ones_own_is_a_source_network(tmp_path):
    found = run("encoder")
    image = torch.rand(2, 1, 8, 8)
    assert found["model"].reconstruct_source(image).shape == image.shape
    other = found["Downscaled"](2)
    assert found["model"].source.fingerprint() != other.fingerprint()
    stored = with_source_features(found["benchmark"], other, tmp_path)
    assert stored.train_stream[0].dataset[0][2].shape == (other.dim,)


def test_an_encoder_of_ones_own_with_another_dim_is_refused_when_the_model_is_made():
    found = run("encoder")
    source = found["Downscaled"](4)
    source.dim = 17
    with pytest.raises(ValueError, match=r"Downscaled\.dim is 17, .* \(2, 16\).* set dim"):
        CoupledModel.build(source, CICNN(3, found["shape"], width=0.1), found["shape"])


def test_an_estimator_of_ones_own_gets_the_fisher_values_of_a_loop():
    found = run("estimator")
    model, values = found["classifier"].eval(), []
    weight = model.get_parameter(name := next(iter(found["relative"])))
    for task in found["targets"]:
        losses = found["of_class"](model(found["images"]), task)
        rows = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
        values.append(torch.stack(rows).square().flatten(1))
    torch.testing.assert_close(found["relative"][name].flatten(), found["signs"](*values))
    assert found["cetl"].recipe.gfi.estimator == "signs"
    with pytest.raises(ValueError, match="'rank' is this package's own"):
        register_estimator("rank")


def test_a_closed_form_of_ones_own_gives_the_fisher_information_of_a_loop(capsys):
    found = run("layer")
    network, images, labels = found["network"], found["images"], found["labels"]
    weights = network[1].frequency
    wanted = torch.zeros_like(weights)
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        loss = torch.nn.functional.cross_entropy(network(image), label)
        wanted += torch.autograd.grad(loss, weights)[0] ** 2 / len(images)
    torch.testing.assert_close(found["fisher"]["1.frequency"], wanted)


def test_a_state_adapter_of_ones_own_keeps_what_a_checkpoint_refuses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("adapter")
    made, plugins = [], [found["AllLosses"]() for _ in range(2)]
    for plugin in plugins:
        torch.manual_seed(1)
        made.append(found["strategy"](plugins=[plugin], train_epochs=1))
    (saved,) = (p for p in found["cetl"].plugins if isinstance(p, found["AllLosses"]))
    assert found["plugin"].losses == saved.losses != array("d")
    made[0].train(found["benchmark"].train_stream)
    save_checkpoint(made[0], "saved.safetensors")
    plugins[1].losses.append(7.0)
    load_checkpoint(made[1], "saved.safetensors")
    assert plugins[1].losses == plugins[0].losses and len(plugins[0].losses) > 1

    class Unknown(SupervisedPlugin):
        losses = None

    unknown = Unknown()
    unknown.losses = array("d")
    with pytest.raises(CheckpointError, match=r"Unknown\.losses is a array"):
        save_checkpoint(found["strategy"](plugins=[unknown]), "other.safetensors")
