import copy
import pickle

import numpy as np
import pytest
import torch
from networks import Of
from torch import nn

from avalanche_cetl import ONNXEncoder, TimmEncoder, transfer_benchmark, with_source_features

pytest.importorskip("onnxruntime")
TINY = "test_resnet.r160_in1k"


class Both(nn.Module):
    """Features and logits of a timm model, as an exporter would give them."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        features = self.module.forward_head(self.module.forward_features(x), pre_logits=True)
        return features, self.module.get_classifier()(features)


def export(module, path, shape=(3, 160, 160), free=(0,), outputs=("features", "logits")):
    axes = {name: {0: "n"} for name in outputs} if 0 in free else {}
    if free:
        axes["images"] = {axis: "nchw"[axis] for axis in free}
    torch.onnx.export(
        module.eval(), (torch.rand(2, *shape),), str(path), dynamo=False,
        input_names=["images"], output_names=list(outputs), dynamic_axes=axes,
    )  # fmt: skip
    return path


@pytest.fixture
def timm_encoder():
    torch.manual_seed(0)
    return TimmEncoder(TINY, pretrained=False)


@pytest.fixture
def file(tmp_path, timm_encoder):
    return export(Both(timm_encoder.module), tmp_path / "net.onnx")


def made(path, timm_encoder, **options):
    p = timm_encoder.preprocessing
    return ONNXEncoder(
        path, "features", logits="logits", mean=p.mean.flatten().tolist(),
        std=p.std.flatten().tolist(), interpolation=p.interpolation, **options,
    )  # fmt: skip


def test_features_and_logits_are_the_timm_encoders(file, timm_encoder):
    encoder = made(file, timm_encoder)
    assert (encoder.dim, encoder.num_classes) == (timm_encoder.dim, 1000)
    for rows in (1, 5):
        x = torch.rand(rows, 1, 28, 28)
        torch.testing.assert_close(encoder(x), timm_encoder(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(encoder.logits(x), timm_encoder.logits(x), rtol=1e-4, atol=1e-4)
    assert not encoder.training and not encoder.train().training


def test_an_encoder_copies_pickles_and_checks_its_file(file, timm_encoder, tmp_path):
    encoder = made(file, timm_encoder)
    x = torch.rand(2, 3, 32, 32)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(other(x), encoder(x))
        assert other.fingerprint() == encoder.fingerprint()
    stale = copy.deepcopy(encoder)
    with torch.no_grad():
        timm_encoder.module.conv1[0].weight.mul_(2)
    export(Both(timm_encoder.module), file)
    assert made(file, timm_encoder).fingerprint() != encoder.fingerprint()
    with pytest.raises(ValueError, match="has changed"):
        stale(x)


def test_the_store_takes_features_of_an_onnx_file(file, timm_encoder, tmp_path, digits):
    encoder = made(file, timm_encoder)
    benchmark = transfer_benchmark(digits(10), digits(6))
    stored = with_source_features(benchmark, encoder, tmp_path / "store", dtype="float32")
    image, _, features, _ = stored.train_stream[0].dataset[7]
    torch.testing.assert_close(features, timm_encoder(image[None])[0], rtol=1e-4, atol=1e-4)


def test_free_height_and_width_need_an_image_size(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1))
    path = export(net, tmp_path / "a.onnx", (1, 9, 9), (0, 2, 3), ("features",))
    with pytest.raises(ValueError, match="image_size="):
        ONNXEncoder(path)
    assert ONNXEncoder(path, image_size=12)(torch.rand(2, 1, 20, 20)).shape == (2, 3)


def test_files_and_arguments_that_do_not_fit_are_refused(tmp_path, file, timm_encoder):
    with pytest.raises(ValueError, match="no such file"):
        ONNXEncoder(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match="interpolation='cubic' is not known"):
        ONNXEncoder(file, interpolation="cubic")
    (tmp_path / "garbage.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="cannot run"):
        ONNXEncoder(tmp_path / "garbage.onnx")
    for output in (None, "middle"):
        with pytest.raises(ValueError, match=r"outputs \['features', 'logits'\]"):
            ONNXEncoder(file, output)
    with pytest.raises(ValueError, match="image_size=64, but"):
        made(file, timm_encoder, image_size=64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    fixed = export(net, tmp_path / "fixed.onnx", (1, 4, 4), (), ("features",))
    with pytest.raises(ValueError, match="dynamic first axis"):
        ONNXEncoder(fixed)
    flat = export(nn.Linear(16, 2), tmp_path / "flat.onnx", (16,), (0,), ("features",))
    with pytest.raises(ValueError, match=r"float images \(N, C, H, W\)"):
        ONNXEncoder(flat)


def test_an_output_without_batch_axis_is_refused(tmp_path):
    mixing = Of(lambda m, x: x.mean(0, keepdim=True).flatten(1))
    path = export(mixing, tmp_path / "mean.onnx", (1, 4, 4), (0,), ("features",))
    with pytest.raises(ValueError, match="keeps no batch axis"):
        ONNXEncoder(path)


def test_without_onnxruntime_the_extra_is_named(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"avalanche-cetl\[onnx\]"):
        ONNXEncoder(file, "features")


def graph(shape, kind=1):
    """A file that flattens images of a declared shape and multiplies them by a matrix."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    numpy_type = {1: "f4", 10: "f2", 11: "f8"}[kind]
    sizes = [side if isinstance(side, int) else 4 for side in shape]
    weight = np.random.default_rng(0).normal(size=(int(np.prod(sizes)), 5)).astype(numpy_type)
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", kind, ["N", *shape])
    output = helper.make_tensor_value_info("y", kind, None)
    made = helper.make_graph(nodes, "g", [given], [output], [numpy_helper.from_array(weight, "W")])
    opset = [helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=8)
    return model.SerializeToString(), torch.tensor(weight).double()


def saved(tmp_path, *args):
    content, weight = graph(*args)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    return path, weight


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (6, 8, 3), ("h", "w", 3), (4, 4, 1)])
def test_files_that_read_channels_last_get_images_turned_round(tmp_path, shape):
    path, weight = saved(tmp_path, shape)
    height, width = (4 if isinstance(side, str) else side for side in shape[:2])
    free = {"image_size": 4} if "h" in shape else {}
    encoder = ONNXEncoder(path, **free)
    x = torch.rand(3, shape[2], height, width)
    assert encoder.channels_last
    wanted = x.double().permute(0, 2, 3, 1).flatten(1) @ weight
    torch.testing.assert_close(encoder(x), wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (5, 8, 8), (1, 4, 4), (3, "h", "w")])
def test_files_that_read_channels_first_get_images_as_they_are(tmp_path, shape):
    path, weight = saved(tmp_path, shape)
    free = {"image_size": 4} if "h" in shape else {}
    encoder = ONNXEncoder(path, **free)
    assert not encoder.channels_last
    x = torch.rand(3, *(4 if isinstance(side, str) else side for side in shape))
    wanted = x.double().flatten(1) @ weight
    torch.testing.assert_close(encoder(x), wanted.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 3, 3), (16, 16, 16), (3, 3, 64), (7, 8, 9)])
def test_shapes_that_leave_the_channels_open_ask_for_them(tmp_path, shape):
    path, weight = saved(tmp_path, shape)
    with pytest.raises(ValueError, match="channels_last=False or True"):
        ONNXEncoder(path)
    first, last = (ONNXEncoder(path, channels_last=said) for said in (False, True))
    x = torch.rand(2, *shape).double()
    torch.testing.assert_close(first(x), (x.flatten(1) @ weight).float(), rtol=1e-3, atol=1e-3)
    turned = x.permute(0, 3, 1, 2)
    torch.testing.assert_close(last(turned), first(x), rtol=1e-4, atol=1e-4)
    assert first.fingerprint() != last.fingerprint()


@pytest.mark.parametrize("location", ["net.onnx.data", "weights/a.bin", f"{'long' * 40}.bin"])
def test_weights_in_files_of_their_own_belong_to_the_file(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    path, place = tmp_path / "net.onnx", tmp_path / location
    place.parent.mkdir(exist_ok=True)
    model = onnx.load_from_string(graph((1, 16, 16))[0])
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    encoder = ONNXEncoder(path)
    stale, before = copy.deepcopy(encoder), place.read_bytes()
    assert stale(torch.ones(1, 1, 16, 16)).shape == (1, 5)
    stale = copy.deepcopy(encoder)
    place.write_bytes((2 * np.frombuffer(before, "f4")).tobytes())
    assert ONNXEncoder(path).fingerprint() != encoder.fingerprint()
    with pytest.raises(ValueError, match="has changed"):
        stale(torch.ones(1, 1, 16, 16))
    place.write_bytes(before)
    assert ONNXEncoder(path).fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize(("kind", "tolerance"), [(10, 0.05), (11, 1e-6)])
def test_files_in_half_and_double_precision_give_float32(tmp_path, kind, tolerance):
    path, weight = saved(tmp_path, (1, 8, 8), kind)
    encoder, x = ONNXEncoder(path), torch.rand(3, 1, 8, 8)
    assert encoder(x).dtype == torch.float32
    wanted = (x.double().flatten(1) @ weight).float()
    torch.testing.assert_close(encoder(x), wanted, rtol=tolerance, atol=tolerance)


def test_a_path_under_the_home_folder_is_found(tmp_path, monkeypatch):
    path, _ = saved(tmp_path, (1, 8, 8))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ONNXEncoder(f"~/{path.name}").dim == 5
