import numpy as np
import pytest

from avalanche_cetl import (
    PrecomputedEncoder,
)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="pickled"):
        PrecomputedEncoder(pickled)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="named 'features'"):
        PrecomputedEncoder(tmp_path / "two.npz")
    for name in ("cut.safetensors", "cut.npz", "cut.npy"):
        (tmp_path / name).write_bytes(b"\x10\x00\x00")
        with pytest.raises(ValueError, match="could not be read"):
            PrecomputedEncoder(tmp_path / name)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected \.safetensors"):
        PrecomputedEncoder(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no such file"):
        PrecomputedEncoder(tmp_path / "missing.npy")
