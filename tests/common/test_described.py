import pytest
import torch
from coupled_runs import SHAPE, coupled
from torch import nn

from avalanche_cetl import (
    GFI,
    CETLStrategy,
    GFIPlugin,
    SoftTargets,
    StreamingRidge,
    plot_benchmark,
    transfer_benchmark,
    with_source_features,
)
from avalanche_cetl.common.described import LONGEST, Described
from avalanche_cetl.features.shards import FeatureRows
from avalanche_cetl.plugins import History
from avalanche_cetl.training import VARIANTS


class Thing(Described):
    def __init__(self, size, name="a", network=None, rows=(), hidden=3, call=None):
        self.size, self.name, self.network, self.rows, self.call = size, name, network, rows, call


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"size": 3}, "Thing(size=3)"),
        ({"size": 3, "name": "a"}, "Thing(size=3)"),
        ({"size": 3, "name": "b", "rows": [1.5]}, "Thing(size=3, name='b', rows=[1.5])"),
        ({"size": torch.arange(2)}, "Thing(size=tensor([0, 1]))"),
        ({"size": "x" * LONGEST}, "Thing(size=str(...))"),
        ({"size": {"a": Thing(1)}}, "Thing(size={'a': Thing(size=1)})"),
        ({"size": object()}, "Thing(size=object(...))"),
        ({"size": nn.ReLU, "call": torch.relu}, "Thing(size=ReLU, call=relu)"),
        ({"size": 1, "network": nn.Linear(2, 2)}, None),
    ],
)
def test_a_thing_shows_the_arguments_that_differ_from_their_defaults(given, shown):
    text = repr(Thing(**given))
    assert text == shown or (shown is None and text.startswith("Thing(size=1, network=Linear("))


def test_a_method_of_its_own_is_no_argument():
    thing = Thing(1)
    thing.call = thing.arguments_shown
    assert repr(thing) == "Thing(size=1)"


def test_a_thing_that_is_half_made_shows_what_it_has():
    class Half(Thing):
        name = property(lambda self: next(iter(())))

    made = Half.__new__(Half)
    made.size = 2
    assert repr(made) == "Half(size=2)"


def test_a_notebook_shows_a_table_of_escaped_text():
    text = Thing(1, name="<b>")._repr_html_()
    assert "<td>name</td><td>&#x27;&lt;b&gt;&#x27;</td>" in text and "<caption>Thing<" in text


@pytest.fixture(scope="module")
def parts():
    images, labels = torch.rand(12, *SHAPE), torch.arange(12) % 3
    benchmark = transfer_benchmark((images, labels), (images, labels), labels_per_class=2)
    model = coupled()
    return benchmark, model.source, model, torch.optim.SGD(model.parameters(), 0.1)


def test_a_strategy_shows_what_it_was_given_and_not_what_its_preset_gives(parts):
    _, _, model, optimizer = parts
    options = {"model": model, "optimizer": optimizer, "evaluator": None}
    text = repr(CETLStrategy(**options, train_epochs=3, plugins=[SoftTargets(temperature=3.0)]))
    assert "train_epochs=3" in text and "SoftTargets(temperature=3.0" in text
    assert "dwa_lambda" not in text and "preset" not in text
    text = repr(CETLStrategy(**options, preset="paper", dwa_lambda=0.5))
    assert "preset='paper'" in text and "dwa_lambda=0.5" in text and "gfi=" not in text


def test_a_variant_shows_its_stages():
    assert "stages=(SourceStage(), CoupledStage(), ClassifyStage())" in repr(VARIANTS["gfi"])
    assert repr(VARIANTS["f"].stages[0]) == "CoupledStage(trains=('target',))"


def test_strategies_and_plugins_of_a_stream_show_what_is_in_force(parts):
    _, source, model, optimizer = parts
    assert repr(GFIPlugin()).startswith("GFIPlugin(dwa_lambda=5.0, ")
    assert "basis='kronecker'" in repr(GFIPlugin())
    plugin = "GFIPlugin(dwa_lambda=2.0"
    assert plugin in repr(GFI(model=model, optimizer=optimizer, dwa_lambda=2.0, basis="diagonal"))
    assert "head=RidgeHead(" in repr(StreamingRidge(encoder=source))
    assert repr(History()) == "History()"


def test_a_benchmark_shows_its_streams_and_its_summary_as_a_table(parts, tmp_path):
    benchmark, source, *_ = parts
    stored = with_source_features(benchmark, source, cache_dir=tmp_path, progress=False)
    for one in (benchmark, stored):
        assert repr(one) == "CETLScenario(train=1, test=1, labelled=1)"
        assert one._repr_html_().count("<tr>") == 4 and "6 (50 %)" in one._repr_html_()
        assert repr(one.summary()) == str(one.summary()) and "\n" in repr(one.summary())
    assert repr(FeatureRows(["a"], 3, 2)) == "FeatureRows(paths=['a'], rows=3, dim=2)"


def test_the_picture_of_a_benchmark_is_shown_by_a_notebook(parts):
    assert plot_benchmark(parts[0], count=2)._repr_png_().startswith(b"\x89PNG")
