"""Pairs of domains."""

from benchmarks.data.digits import COUNTS, as_benchmark, read_pair


def test_digits_mini_comes_out_of_packages():
    pair = read_pair("digits-mini", "nowhere", COUNTS, 0)
    assert pair.shape == (1, 8, 8) and pair.classes == 10
    assert pair.source_test is None
    assert len(pair.source[0]) == 5000 and len(pair.target) + len(pair.target_test[0]) == 1797
    assert set(pair.target_test[1].tolist()) == set(range(10))
    training = as_benchmark(pair).train_stream[0].dataset
    rows = zip(training.targets, training.domain_labels, strict=True)
    labels = {int(label) for label, domain in rows if int(domain) == 0}
    assert labels == {-1}  # no target label is in the training stream
