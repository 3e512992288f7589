"""Small encoders, their images, and what a store of their features holds."""

import multiprocessing

import torch

from avalanche_cetl import Encoder, ModuleEncoder
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.features.extraction import Extraction
from avalanche_cetl.features.store import stored_features
from avalanche_cetl.features.views import SeededView

ROWS = 75


ONE = Processes(None)


def note(log, count):
    with open(log, "a") as file:
        file.write(f"{count}\n")


class Moments(Encoder):
    """Mean and deviation of an image; notes in a file every batch of images."""

    dim = 2

    def __init__(self, log=None):
        super().__init__()
        self.log = log
        self.freeze()

    def _answer_noise(self, shape, dtype):
        log, self.log = self.log, None
        found = super()._answer_noise(shape, dtype)
        self.log = log
        return found

    def encode(self, x):
        if self.log is not None:
            note(self.log, len(x))
        return torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1)], 1)


def images(rows=ROWS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, 4, 4, generator=generator)


def view(x=None):
    x = images() if x is None else x
    return SeededView([(image, 0) for image in x], 0, 0)


def extract(folder, encoder=None, x=None, dtype="float32", batch_size=4, **options):
    encoder = Moments() if encoder is None else encoder
    extraction = Extraction(batch_size, progress=False, **options)
    return stored_features(folder, encoder, view(x), dtype, extraction, ONE)


def seen(log):
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.name[0] != "."
            and p.is_file()}  # fmt: skip


def started(work, *arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


SHAPE = (1, 8, 8)


class Counting(ModuleEncoder):
    """Counts the images it encodes, but for those of noise."""

    images = 0

    def _answer_noise(self, shape, dtype):
        before = type(self).images
        found = super()._answer_noise(shape, dtype)
        type(self).images = before
        return found

    def encode(self, x):
        type(self).images += len(x)
        return super().encode(x)
