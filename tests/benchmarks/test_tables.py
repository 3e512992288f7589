"""Tables 2 and 3 and Fig. 2 in their smallest form, on images made here."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from avalanche_cetl import ModuleEncoder

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(
        not (ROOT / "benchmarks" / "tables").is_dir(), reason="the benchmarks are in the repository"
    ),
    pytest.mark.filterwarnings("ignore"),
]


def _photographs(per_class, seed):
    """Ten classes that differ in colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat_interleave(per_class)
    colours = torch.rand(10, 3, generator=torch.Generator().manual_seed(9))
    x = colours[labels].view(-1, 3, 1, 1) + 0.05 * torch.randn(
        len(labels), 3, 32, 32, generator=generator
    )
    return x.clamp(0, 1), labels


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Give a module of benchmarks.tables, with data made here and files in a folder of the test."""
    monkeypatch.syspath_prepend(str(ROOT))
    found = sys.modules.get("benchmarks")
    if found is not None and str(ROOT) not in str(found.__file__):
        monkeypatch.delitem(sys.modules, "benchmarks")
    monkeypatch.setenv("CETL_CACHE", str(tmp_path / "cache" / "features"))

    def module(name):
        return importlib.import_module(f"benchmarks.tables.{name}")

    board = module("board")
    sets = (_photographs(30, 0), _photographs(5, 1), "made here")
    data = importlib.import_module("benchmarks.data.sets")
    monkeypatch.setattr(data, "read_cifar10", lambda root: sets)
    monkeypatch.setattr(
        importlib.import_module("benchmarks.records"), "TABLES", tmp_path / "results"
    )
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 7))
    small = ModuleEncoder(network, input_shape=(3, 32, 32))
    for table in ("table2", "table2u", "table3"):
        monkeypatch.setattr(module(table), "source_of", lambda *args: small)
    caches = (data.read_data, board.held_features, board.encoder_of)
    for cache in caches:
        cache.cache_clear()
    yield module
    for cache in caches:
        cache.cache_clear()


def test_table_2_trains_a_row_once_and_renders_from_the_files(load, monkeypatch, tmp_path):
    table2, board = load("table2"), load("board")
    rows = ["baseline", "linear probe on S", "soft targets", "CETL fi", "CETL gfi, preset best"]
    table2.run("smoke", "nowhere", 1, rows)
    text = table2.render("smoke")
    assert all(f"| {row} |" in text for row in table2.ROWS)
    assert text.count("not run") == len(table2.ROWS) - len(rows)
    found = importlib.import_module("benchmarks.records").results("table2", "smoke")
    assert found["linear probe on S"][0]["figures"]["accuracy"] > 90
    tuned = [name for name in found if name.endswith("(tuning)")]
    assert set(tuned) == {f"{row} (tuning)" for row in (*rows[1:3], "CETL gfi")}
    monkeypatch.setattr(board, "_fit", None)
    table2.run("smoke", "nowhere", 1, rows)
    assert table2.render("smoke") == text


@pytest.mark.parametrize("table", ["table2", "table2u"])
def test_what_trains_never_holds_the_test_set(load, table):
    transfer = load("transfer")
    names = {field.name for field in dataclasses.fields(transfer.Job)}
    assert names == {
        "train", "features", "budget", "seed", "pixels", "classes", "encoder", "where", "source"
    }  # fmt: skip
    place = load("board").Place(table, "smoke", "nowhere", "soft targets")
    data = place.data()
    held = torch.cat([data.validation[0], data.test[0]]).flatten(1)
    assert torch.cdist(data.train[0].flatten(1), held).min() > 1


def test_unlabelled_images_come_behind_table_2_s_own(load):
    alone, more = (
        load("board").Place(table, "smoke", "nowhere", "soft targets").data()
        for table in ("table2", "table2u")
    )
    x, y = more.train
    count = len(alone.train[1])
    assert len(y) == count + 80 and (y[count:] == -1).all()
    assert torch.equal(x[:count], alone.train[0]) and torch.equal(y[:count], alone.train[1])
    assert torch.cdist(x[count:].flatten(1), x[:count].flatten(1)).min() > 1
    for part in ("validation", "test"):
        assert torch.equal(more.part(part)[0], alone.part(part)[0])


def test_table_2_with_unlabelled_images_runs(load):
    table = load("table2u")
    rows = ["soft targets", "CETL gfi, hints"]
    table.run("smoke", "nowhere", 1, rows)
    assert table.render("smoke").count("not run") == len(table.ROWS) - len(rows)


def test_a_strength_is_chosen_on_validation_images(load, monkeypatch, tmp_path):
    table2, board = load("table2"), load("board")
    parts = []
    whole = board._fit
    monkeypatch.setattr(board, "_fit", lambda *args: parts.append(args[-1]) or whole(*args))
    place = board.Place("table2", "smoke", "nowhere", "linear probe on S")
    board.tune(place)
    assert set(parts) == {"validation"}
    board.one(place, 0)
    assert parts[-1] == "test"
    path = tmp_path / "results" / "table2" / "smoke" / "linear_probe_on_S-seed0.json"
    document = json.loads(path.read_text())
    assert document["figures"]["data"] == "CIFAR-10 (made here)"
    assert document["settings"]["strength"] in table2.ROWS["linear probe on S"].strengths


def test_mixed_images_come_behind_the_draw(load):
    table2, board = load("table2"), load("board")
    plain = board.Place("table2", "smoke", "nowhere", "baseline").data()
    place = board.Place("table2", "smoke", "nowhere", "CETL gfi, preset best, mixed images")
    x, y = place.data().train
    count = len(plain.train[1])
    assert torch.equal(x[:count], plain.train[0]) and (y[count:] == -1).all()
    assert len(y) == count * (1 + table2.MIXED)
    settings = place.settings()
    assert settings["mixed"] == table2.MIXED and settings["epochs"] == place.budget.epochs
    assert settings["preset"]["plugins"][0]["class"] == "DecoderHints"
    assert "mixed" not in board.Place("table2", "smoke", "nowhere", "baseline").settings()
    job = board.job_of(place, 0)
    assert job.features.shape == (len(y), 12)
    raw = plain.pixels.restore(x[count : count + 3])
    found = board.encoder_of(place)(raw)
    torch.testing.assert_close(job.features[count : count + 3], found, rtol=1e-2, atol=1e-2)


def test_rows_with_mixed_images_run(load):
    table2 = load("table2")
    rows = [row for row in table2.ROWS if "mixed" in row]
    rows = [rows[0], rows[-1]]
    table2.run("smoke", "nowhere", 1, rows)
    assert table2.render("smoke").count("not run") == len(table2.ROWS) - len(rows)
    assert importlib.import_module("benchmarks.records").results("table2", "smoke")[rows[-1]][0][
        "figures"
    ]["source"]


def test_mixed_mini_batches_have_shares_of_classes(load):
    transfer = load("transfer")

    class Strategy:
        mbatch = [torch.rand(16, 3, 32, 32), torch.arange(16) % 10, torch.zeros(16)]
        mb_x = mbatch[0]

    before = Strategy.mbatch[0]
    transfer.MixedViews(10).before_forward(Strategy)
    x, y, _ = Strategy.mbatch
    assert y.shape == (16, 10) and torch.allclose(y.sum(1), torch.ones(16))
    assert x.shape == before.shape and not torch.equal(x, before)


def test_a_data_set_or_weights_that_are_not_there_leave_a_row_not_run(load, monkeypatch, capsys):
    table3 = load("table3")
    there = table3.source_of
    names = ("STL-10, no source", "VGG-16", "EfficientNet-Lite0")
    rows = {name: dataclasses.replace(table3.ROWS[name], scales=("smoke",)) for name in names}
    monkeypatch.setattr(table3, "ROWS", rows)

    def source_of(row, *args):
        if row == "VGG-16":
            raise URLError("no network")
        return there(row, *args)

    monkeypatch.setattr(table3, "source_of", source_of)
    table3.run("smoke", "nowhere", 1)
    said = capsys.readouterr().out
    assert "VGG-16: not run. <urlopen error no network>" in said
    assert "STL-10, no source: not run. STL10 is not there" in said
    assert table3.render("smoke").count("not run") == 2
    for name in names[:2]:  # asked for by name, it is an error
        with pytest.raises((URLError, FileNotFoundError)):
            table3.run("smoke", "nowhere", 1, [name])
    monkeypatch.setattr(table3, "ROWS", {name: rows[name] for name in names[:2]})
    with pytest.raises((URLError, FileNotFoundError)):
        table3.run("smoke", "nowhere", 1)


@pytest.mark.parametrize("table, row, size, classes", [
    ("table3", "STL-10, CI-CNN, CIFAR-100", 64, 3), ("table4", "CIFAR-100, student", 32, 12),
    ("table4", "CIFAR-100, FSP", 32, 12),
])  # fmt: skip
def test_other_data_sets_bring_their_shape_and_classes(
    load, monkeypatch, table, row, size, classes
):
    module, board = load(table), load("board")

    def read(name, root):
        generator = torch.Generator().manual_seed(len(name))
        count = 100 if name == "CIFAR-100" and table == "table3" else classes
        labels = torch.arange(count).repeat_interleave(12)
        side = 32 if name == "CIFAR-100" else size
        sets = [(torch.rand(len(labels), 3, side, side, generator=generator), labels)] * 2
        return *sets, "made here"

    monkeypatch.setattr(importlib.import_module("benchmarks.data.sets"), "read_set", read)
    monkeypatch.setattr(load("sources"), "read_set", read)
    changes = (("per_class", 8), ("validation_per_class", 4))
    found = dataclasses.replace(
        module.ROWS[row], scales=("smoke",), changes=changes, strengths=(1.0,)
    )
    monkeypatch.setattr(module, "ROWS", {row: found})
    if table == "table3":
        monkeypatch.setattr(module, "source_of", lambda row, *args: module.SOURCES[row](*args))
    else:
        sources = load("sources")
        made = sources.teacher
        monkeypatch.setattr(sources, "ResNet26", lambda _classes, *args, **kw: resnet(classes, kw))
        assert made is module.teacher
    module.run("smoke", "nowhere", 1)
    place = board.Place(table, "smoke", "nowhere", row)
    document = importlib.import_module("benchmarks.records").results(table, "smoke")[row][0]
    assert document["settings"]["data"] == row.split(",")[0] == document["figures"]["data"][:-12]
    job = board.job_of(place, 0)
    assert job.shape == (3, size, size) and job.network().num_classes == classes


def resnet(classes, options):
    from avalanche_cetl import ResNet26

    return ResNet26(classes, (3, 32, 32), **options)


def test_full_on_a_gpu_is_fast_and_all_else_is_plain(load):
    where = importlib.import_module("benchmarks.where").Where
    assert where.of("full", "cuda:0") == where("cuda:0", "bfloat16", True)
    assert where.of("cpu", "cuda") == where("cuda") and where.of("full", "cpu") == where()


@pytest.mark.parametrize("table, row", [
    ("table2", "baseline"), ("table2", "feature distillation"), ("table2", "CETL gfi"),
    ("table4", "FSP"), ("table4", "FitNets"), ("table2", "soft targets"),
])  # fmt: skip
def test_half_precision_and_layout_reach_every_method(load, table, row):
    board, transfer = load("board"), load("transfer")
    fast = importlib.import_module("benchmarks.where").Where("cpu", "bfloat16", True)
    job = board.job_of(board.Place(table, "smoke", "nowhere", row, fast), 0)
    seen = []

    class Watched(transfer.CICNN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.features[0].register_forward_hook(self.note)

        def note(self, _module, inputs, output):
            if self.training:
                flat = inputs[0].is_contiguous(memory_format=torch.channels_last)
                seen.append((output.dtype, flat))

    job.network = lambda: Watched(10, (3, 32, 32), width=0.05)
    network = load(table).ROWS[row].train(job, 1.0)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert (torch.bfloat16, True) in seen


def test_table_3_runs_its_sources(load):
    table3 = load("table3")
    table3.run("smoke", "nowhere", 1, ["EfficientNet-Lite0"])
    assert table3.render("smoke").count("not run") == len(table3.ROWS) - 1


def test_table_4_gives_the_share_of_the_gap(load, tmp_path):
    table4 = load("table4")
    rows = ["teacher", "student", "FitNets", "FSP"]
    table4.run("smoke", "nowhere", 1, rows)
    assert table4.render("smoke").count("not run") == len(table4.ROWS) - len(rows)
    found = {
        name: {0: {"figures": {"accuracy": value}}}
        for name, value in (("teacher", 80.0), ("student", 70.0), ("FSP", 74.0))
    }
    assert table4._shares(found, "FSP") == [pytest.approx(40.0)]
    assert table4._shares(found, "FitNets") == []


def test_fsp_matrices_by_hand(load):
    fsp_loss = importlib.import_module("benchmarks.rivals.fsp").fsp_loss
    torch.manual_seed(0)
    student = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    teacher = [torch.randn(2, 3, 2, 2), torch.randn(2, 5, 2, 2)]
    total = 0.0
    pooled = nn.functional.adaptive_max_pool2d(student[0], 2)
    for n in range(2):
        for a in range(3):
            for b in range(5):
                mine = (pooled[n, a] * student[1][n, b]).mean()
                total += (mine - (teacher[0][n, a] * teacher[1][n, b]).mean()) ** 2
    torch.testing.assert_close(fsp_loss(student, teacher), total / 30)


def test_a_source_is_trained_once_and_kept(load, monkeypatch, tmp_path):
    sources, table3 = load("sources"), load("table3")
    budget = table3.BUDGETS["smoke"]
    first = sources.other_classes(budget, "nowhere")
    train = sources.fit_plainly
    monkeypatch.setattr(sources, "fit_plainly", None)
    assert first.fingerprint() == sources.other_classes(budget, "nowhere").fingerprint()
    for path in (tmp_path / "cache" / "benchmarks").iterdir():  # from nothing, the same again
        path.unlink()
    monkeypatch.setattr(sources, "fit_plainly", train)
    torch.manual_seed(5)
    assert first.fingerprint() == sources.other_classes(budget, "nowhere").fingerprint()


def test_fig_2_is_drawn_from_its_files(load, tmp_path):
    fig2 = load("fig2")
    fig2.run("smoke", "nowhere", 1, [fig2.LOSSES])
    assert "CIFAR-10-s, losses: L_c is highest in round 1" in fig2.render("smoke")
    assert fig2.picture("smoke").stat().st_size > 5000
