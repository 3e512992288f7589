import pytest
import torch
from stores import ROWS, Moments, extract, images

from avalanche_cetl import FeatureStoreError

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_the_encoders(tmp_path, dtype):
    rows = extract(tmp_path, dtype=dtype)
    wanted = Moments()(images()).to(getattr(torch, dtype))
    assert len(rows) == ROWS and rows.dim == 2
    assert torch.equal(rows.tensor(), wanted)
    assert all(torch.equal(rows[i], wanted[i]) for i in range(-ROWS, ROWS))
    assert torch.equal(torch.stack(rows[3:20:4]), wanted[3:20:4])
    with pytest.raises(IndexError):
        rows[ROWS]


def test_a_shard_that_vanishes_later_is_an_error(tmp_path):
    rows = extract(tmp_path)
    for path in tmp_path.rglob("shard-*"):
        path.unlink()
    with pytest.raises(FeatureStoreError, match="cannot be read any more"):
        rows[0]
