import pytest
import torch

from avalanche_cetl import CheckpointError, load_checkpoint, save_checkpoint

OPTIMIZERS = {
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "Adam, AMSGrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.01),
    "RMSprop, centred": lambda p: torch.optim.RMSprop(p, 0.01, centered=True, momentum=0.5),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
}


class Lazy(torch.optim.SGD):
    """Makes settings of a group, shared state and moments of other shapes when it first steps."""

    def step(self, closure=None):
        self.state["shared"] = {"steps": self.state.get("shared", {}).get("steps", 0) + 1}
        for group in self.param_groups:
            group["d"] = group.get("d", 1.0) * 0.9
            for p in group["params"]:
                rows = p.detach().reshape(len(p), -1).mean(1)
                seen = self.state[p].get("seen", 0) + torch.stack([rows, rows**2])
                self.state[p] = {"seen": seen, "first": None}
                p.data -= 1e-3 * group["d"] * self.state["shared"]["steps"] * seen.mean()
        return super().step(closure)


OPTIMIZERS["one that makes its state late"] = lambda p: Lazy(p, 0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_with_the_optimiser_ends_as_one_that_was_never_stopped(small, tmp_path, name):
    small.resumed_as_straight(
        lambda: small.strategy(optimizer=OPTIMIZERS[name]), small.benchmark(), tmp_path / "c"
    )


def test_a_setting_of_another_kind_is_refused(small, tmp_path):
    strategy = small.strategy()
    strategy.optimizer.param_groups[0]["nesterov"] = "yes"
    save_checkpoint(strategy, tmp_path / "c")
    with pytest.raises(CheckpointError, match="nesterov"):
        load_checkpoint(small.strategy(), tmp_path / "c")
