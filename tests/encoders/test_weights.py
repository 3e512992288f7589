import os

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from avalanche_cetl import TimmEncoder

TINY = "test_resnet.r160_in1k"


def test_state_dicts_load_as_training_scripts_save_them(tmp_path):
    torch.manual_seed(1)
    model = timm.create_model(TINY)
    state = model.state_dict()
    wrapped = {"state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3}
    for number, content in enumerate((state, {"model": state}, wrapped)):
        torch.save(content, tmp_path / f"{number}.pth")
        encoder = TimmEncoder(TINY, weights=str(tmp_path / f"{number}.pth"))
        for name, tensor in encoder.module.state_dict().items():
            assert torch.equal(tensor, state[name])


class _Code:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def test_weights_that_do_not_fit_are_listed(tmp_path):
    save_file(timm.create_model(TINY).state_dict(), tmp_path / "good.safetensors")
    state = load_file(tmp_path / "good.safetensors")
    state["extra.weight"] = torch.zeros(2)
    state["fc.bias"] = torch.zeros(7)
    del state["conv1.0.weight" if "conv1.0.weight" in state else "conv1.weight"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError) as problem:
        TimmEncoder(TINY, weights=tmp_path / "bad.safetensors")
    text = str(problem.value)
    assert "1 missing: conv1" in text and "1 unexpected: extra.weight" in text
    assert "fc.bias (7,) for (1000,)" in text


def test_weight_files_that_hold_something_else_are_refused(tmp_path):
    files = {
        "code.pth": _Code(), "list.pth": [1, 2], "names.pth": {"a": "b"},
    }  # fmt: skip
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    for name in ("cut.safetensors", "cut.pth", "empty.pth"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"\x04\x00garbage")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=r"plain tensors|no state dict"):
            TimmEncoder(TINY, weights=path)


def test_imagenet_weights_come_out_of_a_package():
    encoder = TimmEncoder("tf_efficientnet_lite0", weights="package")
    assert (encoder.dim, encoder.num_classes) == (1280, 1000)
    assert encoder.size == (224, 224)
    # Trained weights, not random ones: a picture of stripes is something to be sure about.
    stripes = (torch.arange(224) // 14 % 2).float().expand(1, 3, 224, 224)
    assert encoder.logits(stripes).softmax(1).max() > 0.05
    with pytest.raises(ValueError, match="not for 'resnet10t'"):
        TimmEncoder("resnet10t", weights="package")


def test_a_missing_weight_package_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="offline"):
        TimmEncoder("tf_efficientnet_lite1", weights="package")
