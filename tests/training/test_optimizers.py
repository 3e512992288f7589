import pytest
import torch
from coupled_runs import coupled, moved, snapshot, strategy

from avalanche_cetl import CETLPlugin
from avalanche_cetl.training import SourceStage, Stage
from avalanche_cetl.training.optimizers import StageOptimizer


def test_stages_have_their_own_moments(transfer):
    s = strategy(variant="e")
    s.train(transfer.train_stream)
    head = s.model.target.module.head.weight
    own = s.optimizer.state[head]["exp_avg"]
    hidden = s.model.target.module.hidden[1].weight
    coupled_state = s.optimizers["stage 2"].optimizer.state
    assert own.abs().sum() > 0
    assert not torch.equal(s.optimizer.state[hidden]["exp_avg"], coupled_state[hidden]["exp_avg"])
    decoder = s.model.decoder.layers[0].weight
    source_state = s.optimizers["stage 1"].optimizer.state
    assert not torch.equal(source_state[decoder]["exp_avg"], coupled_state[decoder]["exp_avg"])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.001),
    ],
)
def test_optimizers_of_other_classes_train(transfer, make):
    model = coupled()
    strategy(model, optimizer=make(model.parameters())).train(transfer.train_stream)


def test_parameter_groups_keep_their_settings_in_every_stage(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(
        [
            {"params": list(model.decoder_parameters().values()), "lr": 0.0},
            {"params": list(model.target_parameters().values()), "lr": 0.1},
        ],
        lr=0.5,
    )
    before = snapshot(model)
    strategy(model, optimizer=optimizer, variant="e").train(transfer.train_stream)
    assert moved(model, before) and all(n.startswith("target.") for n in moved(model, before))


def test_an_optimizer_of_one_group_gets_the_decoder_added(transfer):
    model = coupled()
    optimizer = torch.optim.SGD(model.target.parameters(), lr=0.1)
    before = snapshot(model)
    strategy(model, optimizer=optimizer, variant="e").train(transfer.train_stream)
    assert any(name.startswith("decoder.") for name in moved(model, before))


def test_factors_scale_the_learning_rates_of_their_stages(transfer):
    def after(stage, **settings):
        torch.manual_seed(0)
        model = coupled()
        moves = []

        class Watch(CETLPlugin):
            def before_stage(self, strategy, *args, **kwargs):
                self.before = snapshot(model)

            def after_stage(self, strategy, *args, **kwargs):
                if strategy.stage is stage:
                    new = dict(model.named_parameters())
                    moves.append(
                        sum(float((new[n].detach() - p).norm()) for n, p in self.before.items())
                    )

        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        settings = {"variant": "e", "plugins": [Watch()], **settings}
        strategy(model, optimizer=optimizer, train_mb_size=60, **settings).train(
            transfer.train_stream
        )
        return moves[0]

    for stage, factors in ((Stage.SOURCE, (0.1, 1.0)), (Stage.COUPLED, (1.0, 0.1))):
        assert after(stage, lr_factors=factors) == pytest.approx(0.1 * after(stage), rel=0.03)


def test_settings_of_the_template_are_read_at_every_step_and_moments_are_kept():
    model = coupled()
    template = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.5)
    own = StageOptimizer(SourceStage())
    own.prepare(template, model)
    (parameter, *_) = SourceStage().parameters(model)
    before = parameter.detach().clone()
    for rate in (1.0, 0.1):
        template.param_groups[0]["lr"] = rate
        parameter.grad = torch.ones_like(parameter)
        own.step(template, factor=0.5)
        own.prepare(template, model)
    # Steps of 0.5 * 1 and 0.05 * 1.5: the momentum of the first step is in the second.
    torch.testing.assert_close(parameter.detach(), before - 0.5 - 0.075)
    assert not template.state
