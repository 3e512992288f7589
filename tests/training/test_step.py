import copy

from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin
from coupled_runs import strategy

from avalanche_cetl import CETLPlugin, transfer_benchmark
from avalanche_cetl.training import Stage


def test_ewc_holds_the_target_in_stage_2_as_well(digits):
    benchmark = transfer_benchmark(digits(40), digits(20), labels_per_class=4)
    penalties = {}

    class Watch(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            penalties.setdefault(strategy.stage, []).append(float(strategy.loss.detach()))

    results = []
    for strength in (0.0, 1e6):
        penalties.clear()
        s = strategy(plugins=[EWCPlugin(ewc_lambda=strength), Watch()], variant="e", lr=1e-3)
        s.train(benchmark.train_stream)
        s.train(benchmark.train_stream)
        results.append(copy.deepcopy(penalties))
    assert results[1][Stage.COUPLED][-1] > results[0][Stage.COUPLED][-1]


def test_weights_that_a_merged_stage_does_not_train_have_no_gradient_when_it_steps(transfer):
    before, after = set(), set()

    def with_gradient(model):
        return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}

    class Watch(CETLPlugin):
        def before_update(self, strategy, *args, **kwargs):
            before.update(with_gradient(strategy.model))
            strategy.model.source.named_modules = None  # S, which may be large, is not walked

        def after_update(self, strategy, *args, **kwargs):
            del strategy.model.source.named_modules
            after.update(with_gradient(strategy.model))

    strategy(variant="two_step", plugins=[Watch()]).train(transfer.train_stream)
    assert before == {"decoder", "target"} and after == {"target"}
