import copy

import torch
from coupled_runs import coupled, strategy

from avalanche_cetl import CETLPlugin
from avalanche_cetl.training import Stage
from avalanche_cetl.training.goal import FixedGoal


def test_a_fixed_goal_is_that_of_stage_1(transfer):
    model = coupled()
    goals, wanted = [], []

    class Watch(CETLPlugin):
        def before_stage(self, strategy, *args, **kwargs):
            self.old = copy.deepcopy(model)

        def before_backward(self, strategy, *args, **kwargs):
            if strategy.stage is Stage.COUPLED:
                step = strategy.coupled
                goals.append(step.goal)
                wanted.append(self.old.reconstruct_source(features=step.features).detach())

    settings = {"variant": "e", "train_epochs": 2, "plugins": [Watch()]}
    strategy(model, fixed_goal=True, **settings).train(transfer.train_stream)
    torch.testing.assert_close(goals, wanted)
    assert all(not p.requires_grad for p in model.source.parameters())
    goals.clear(), wanted.clear()
    strategy(model, **settings).train(transfer.train_stream)
    assert not torch.allclose(goals[-1], wanted[-1])


def test_a_kept_goal_is_that_of_the_weights_at_its_last_renewal():
    model = coupled()
    features, goal = torch.rand(3, model.source.dim), FixedGoal()

    def image():
        return goal.decoder(goal.code(features))

    goal.renew(model)
    first = model.reconstruct_source(features=features).detach()
    with torch.no_grad():
        for parameter in model.decoder_parameters().values():
            parameter.mul_(1.1)
    assert torch.equal(image(), first)
    goal.renew(model)
    assert torch.equal(image(), model.reconstruct_source(features=features))
    assert not image().requires_grad
