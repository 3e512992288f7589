import torch

from avalanche_cetl.demo.digits import SHAPE, load_digits_pair, with_validation


def test_the_pair_is_real_stratified_and_of_one_shape(pair):
    assert [len(s) for s in vars(pair).values()] == [3500, 1500, 1257, 540]
    for split in vars(pair).values():
        assert split.images.shape[1:] == SHAPE
        assert split.images.min() >= 0 and split.images.max() <= 1
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.max()


def test_the_split_is_fixed_and_validation_comes_from_training_rows(pair):
    again = load_digits_pair()
    assert torch.equal(pair.target_test.images, again.target_test.images)
    tuning = with_validation(pair)
    assert len(tuning.target_train) + len(tuning.target_test) == len(pair.target_train)

    def keys(split):
        return {image.numpy().tobytes() for image in split.images}

    held_out = keys(pair.target_test) - keys(pair.target_train)
    assert not held_out & (keys(tuning.target_train) | keys(tuning.target_test))
