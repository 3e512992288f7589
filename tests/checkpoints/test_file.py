import pytest
import torch
from saved_runs import coupled, make

from avalanche_cetl import CheckpointError, save_checkpoint
from avalanche_cetl.checkpoints import codec as file
from avalanche_cetl.checkpoints.codec import read_checkpoint_file, write_checkpoint_file
from avalanche_cetl.checkpoints.codec import equal


def write(path, **changes):
    tensors = {"0": torch.arange(6.0).reshape(2, 3), "1": torch.zeros(0)}
    write_checkpoint_file(path, tensors | changes.pop("tensors", {}), {"words": [1, "two"]})
    return tensors


def test_a_file_is_read_as_it_was_written(tmp_path):
    tensors = write(tmp_path / "a")
    found, state = read_checkpoint_file(tmp_path / "a")
    assert state == {"words": [1, "two"]} and equal(found, tensors)


def test_a_change_of_any_byte_is_found(tmp_path):
    write(tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "b").write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_checkpoint_file(tmp_path / "b")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64], ids=["empty", "short", "noise"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_checkpoint_file(tmp_path / "a")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors cannot be read"):
        read_checkpoint_file(tmp_path / "nothing.safetensors")


def test_a_file_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "VERSION", 999)
    write(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has version '999' of the format"):
        read_checkpoint_file(tmp_path / "a")


def test_plain_data_that_outgrow_the_header_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_HEADER_BYTES", 100)
    with pytest.raises(CheckpointError, match="keeps too much"):
        write(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_checkpoint_is_little_more_than_its_tensors(benchmark, tmp_path):
    strategy = make(model=coupled(width=1.0), train_epochs=1)
    strategy.train(benchmark.train_stream, eval_streams=[])
    save_checkpoint(strategy, tmp_path / "x.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        held = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
        source = strategy.model.source
        assert all(
            not torch.equal(file.get_tensor(name), p)
            for name in file.keys()  # noqa: SIM118
            for p in source.parameters()
            if file.get_tensor(name).shape == p.shape and p.numel() > 100
        )
    assert (tmp_path / "x.safetensors").stat().st_size <= 1.1 * held
