"""Faults tried one by one: each ends in a clear error or a right result.

A trial takes an empty folder, and returns in words what happened; it raises AssertionError when
what happened is neither.
"""

from __future__ import annotations

from benchmarks.faults.trials import company, damage, disk, networks, numbers
from benchmarks.faults.trials.outcome import Trial

TRIALS: dict[str, Trial] = {
    "disk full": disk.disk_full,
    "read-only folder": disk.read_only,
    "disk full in the feature store": disk.disk_full_for_features,
    "a file where a folder should be": disk.folder_is_a_file,
    "missing file": damage.missing,
    "truncated files": damage.truncated,
    "one bit flipped": damage.one_bit,
    "another version": damage.another_version,
    "another network": damage.another_network,
    "a pickle in place of a checkpoint": damage.a_pickle,
    "bombs": damage.bombs,
    "NaN in an image": numbers.broken_images(float("nan")),
    "infinity in an image": numbers.broken_images(float("inf")),
    "NaN in stored features": numbers.broken_features,
    "infinity in live features": numbers.broken_live_features,
    "NaN in gradients": numbers.broken_gradients,
    "NaN in the loss": numbers.broken_loss,
    "a loader's worker dies": networks.dying_worker,
    "no labelled row": networks.no_labels,
    "10,000 classes": networks.ten_thousand_classes,
    "one image and BatchNorm": networks.one_image_and_batchnorm,
    "nothing shared": networks.nothing_shared,
    "the clock goes backwards": company.clock_goes_back,
    "one cache folder for three": company.one_cache_for_three,
}
