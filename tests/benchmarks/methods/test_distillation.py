"""Who is asked for soft targets."""

import torch

from benchmarks.methods.distillation import Live, of_probe, of_teacher
from benchmarks.tables.board import Place


def _job(table, row="baseline"):
    place = Place(table, "smoke", "nowhere", row, "CIFAR-10")
    return place.the_table.job(place, 0, 3.0)


def test_a_probe_is_fitted_on_labelled_images_alone(photographs, small_source):
    plugins = [of_probe(_job(table, "soft_targets"), "target") for table in ("table2", "table2u")]
    assert [plugin.weight for plugin in plugins] == [3.0, 3.0]
    x = torch.rand(5, 12)
    first, second = (plugin.head(x) for plugin in plugins)
    torch.testing.assert_close(first, second)  # the unlabelled images change nothing


def test_a_teacher_says_the_same_of_images_and_of_its_features(photographs):
    job = _job("table4", "student")
    plugin = of_teacher(job, "labelled")
    with torch.no_grad():
        live = Live(job).eval()(job.train[0][:4])
        stored = plugin.head(job.features[:4])
    assert plugin.temperature == 4.0
    assert live.argmax(1).tolist() == stored.argmax(1).tolist()
    torch.testing.assert_close(live, stored, rtol=1e-2, atol=1e-2)
