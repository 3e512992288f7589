"""What rows on photographs read, and that all methods follow the device's settings."""

from dataclasses import fields, replace

import pytest
import torch

from avalanche_cetl import CICNN, ResNet26
from benchmarks.data import sets
from benchmarks.methods import sources
from benchmarks.methods.job import TransferJob
from benchmarks.tables import board, table2, table3, table4
from benchmarks.tables.board import Place
from benchmarks.tables.photographs import data_of


@pytest.mark.parametrize("table", ["table2", "table2u"])
def test_what_trains_never_holds_the_test_set(photographs, table):
    names = {field.name for field in fields(TransferJob)}
    assert names == {
        "budget", "seed", "strength", "where", "train", "features", "pixels", "encoder"
    }  # fmt: skip
    data = data_of(Place(table, "smoke", "nowhere", "soft_targets", "CIFAR-10"))
    held = torch.cat([data.validation[0], data.test[0]]).flatten(1)
    assert torch.cdist(data.train[0].flatten(1), held).min() > 1


def test_unlabelled_images_come_behind_table_2_s_own(photographs):
    alone, more = (
        data_of(Place(table, "smoke", "nowhere", "soft_targets", "CIFAR-10"))
        for table in ("table2", "table2u")
    )
    x, y = more.train
    count = len(alone.train[1])
    assert len(y) == count + 80 and (y[count:] == -1).all()
    assert torch.equal(x[:count], alone.train[0]) and torch.equal(y[:count], alone.train[1])
    for part in ("validation", "test"):
        assert torch.equal(more.part(part)[0], alone.part(part)[0])


def test_mixed_images_come_behind_the_draw_with_their_features(photographs, small_source):
    plain = data_of(Place("table2", "smoke", "nowhere", "baseline", "CIFAR-10"))
    place = Place("table2", "smoke", "nowhere", "best_mixed_gfi", "CIFAR-10")
    x, y = data_of(place).train
    count = len(plain.train[1])
    assert torch.equal(x[:count], plain.train[0]) and (y[count:] == -1).all()
    assert len(y) == count * (1 + table2.MIXED)
    settings = place.settings()
    assert settings["mixed"] == table2.MIXED and settings["epochs"] == place.budget.epochs
    assert settings["preset"]["plugins"][0]["class"] == "DecoderHints"
    job = place.the_table.job(place, 0, 1.0)
    assert job.features.shape == (len(y), 12)
    raw = plain.pixels.restore(x[count : count + 3])
    torch.testing.assert_close(
        job.features[count : count + 3], small_source(raw), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("table, row, size, classes", [
    (table3, "stl10_cifar100", 64, 3), (table4, "cifar100_student", 32, 12),
    (table4, "cifar100_fsp", 32, 12),
])  # fmt: skip
def test_other_data_sets_bring_their_shape_and_classes(
    photographs, monkeypatch, table, row, size, classes
):
    def read(name, root):
        generator = torch.Generator().manual_seed(len(name))
        count = 100 if name == "CIFAR-100" and table is table3 else classes
        labels = torch.arange(count).repeat_interleave(12)
        side = 32 if name == "CIFAR-100" else size
        made = [(torch.rand(len(labels), 3, side, side, generator=generator), labels)] * 2
        return *made, "made here"

    monkeypatch.setattr(sets, "read_set", read)
    monkeypatch.setattr(sources, "read_set", read)
    few = {"scales": ("smoke",), "strengths": (1.0,)}
    changes = (("per_class", 8), ("validation_per_class", 4))
    found = replace(table.ROWS[row], changes=changes, **few)
    monkeypatch.setattr(table.TABLE, "rows", {row: found})
    if table is table4:
        monkeypatch.setattr(
            sources, "ResNet26", lambda _classes, *args, **kw: ResNet26(classes, *args, **kw)
        )
    board.run(table.TABLE, "smoke", "nowhere", 1)
    document = table.TABLE.results("smoke")[found.title][0]
    assert document["settings"]["data"] == found.data
    assert document["figures"]["data"] == f"{found.data} (made here)"
    (place,) = table.TABLE.places("smoke", "nowhere")
    job = table.TABLE.job(place, 0, 1.0)
    assert job.shape == (3, size, size) and job.network().num_classes == classes


@pytest.mark.parametrize("table, row", [
    (table2, "baseline"), (table2, "features"), (table2, "cetl_gfi"),
    (table4, "fsp"), (table4, "fitnets"), (table2, "soft_targets"),
])  # fmt: skip
def test_half_precision_and_layout_reach_every_method(photographs, small_source, fast, table, row):
    place = Place(table.TABLE.name, "smoke", "nowhere", row, "CIFAR-10", fast)
    job = table.TABLE.job(place, 0, 1.0)
    seen = []

    class Watched(CICNN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.features[0].register_forward_hook(self.note)

        def note(self, _module, inputs, output):
            if self.training:
                flat = inputs[0].is_contiguous(memory_format=torch.channels_last)
                seen.append((output.dtype, flat))

    job.network = lambda: fast.place(Watched(10, (3, 32, 32), width=0.05))
    network = table.ROWS[row].method(job)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert (torch.bfloat16, True) in seen
