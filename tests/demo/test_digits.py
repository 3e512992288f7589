import torch

from avalanche_cetl.demo.digits import SHAPE, jitter, load_digits_pair, validation_digits


def test_the_pair_is_real_stratified_and_of_one_shape(pair):
    assert [len(s) for s in vars(pair).values()] == [3500, 1500, 1257, 540]
    for split in vars(pair).values():
        assert split.images.shape[1:] == SHAPE
        assert split.images.min() >= 0 and split.images.max() <= 1
        counts = torch.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.max()


def test_the_split_is_fixed_and_validation_comes_from_training_rows(pair, read_once):
    again = load_digits_pair()
    assert torch.equal(pair.target_test.images, again.target_test.images)
    tuning = validation_digits()

    def keys(split):
        return {image.numpy().tobytes() for image in split.images}

    for name in ("source", "target"):
        train, test = (getattr(pair, f"{name}_{part}") for part in ("train", "test"))
        parts = [getattr(tuning, f"{name}_{part}") for part in ("train", "test")]
        assert sum(map(len, parts)) == len(train)
        held_out = keys(test) - keys(train)
        assert not held_out & (keys(parts[0]) | keys(parts[1]))


def test_every_image_is_turned_on_its_own(pair):
    torch.manual_seed(0)
    one = pair.target_train.images[:1]
    found = jitter(one.expand(8, -1, -1, -1))
    assert found.shape == (8, *SHAPE) and len({x.numpy().tobytes() for x in found}) == 8
    assert (found - one).abs().mean() < 0.25
