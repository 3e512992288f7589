"""The same samples in one process and shared out to two, over gloo."""

import gc
import weakref

import pytest
import torch
from torch import nn

from avalanche_cetl import fisher_information
from avalanche_cetl.information import kronecker_basis
from avalanche_cetl.information.gradients import per_sample


def test_two_processes_measure_what_one_does(two_processes):
    both = two_processes(
        """
        from avalanche_cetl.information import fisher_and_relative

        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4), nn.Tanh(),
            nn.Linear(4, 3),
        ).double()
        x, y, goal = torch.randn(23, 1, 4, 4).double(), torch.randint(3, (23,)), torch.randn(23, 3)
        losses = (
            lambda out, y: F.cross_entropy(out, y, reduction="none"),
            lambda out, t: (out - t).square().sum(1),
        )
        own = slice(0, 15) if rank == 0 else slice(15, None)
        for estimator in ("gaussian", "rank", "histogram"):
            for chunk in (2**29, 2**15):
                options = dict(estimator=estimator, chunk_bytes=chunk)
                whole = fisher_and_relative(model, x, losses, targets=(y, goal), **options)
                found = fisher_and_relative(
                    model, x[own], losses, targets=(y[own], goal[own]), process_group=world,
                    **options,
                )
                for one, other in zip(whole, found):
                    assert list(one) == list(other)
                    for name, value in one.items():
                        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-12)
                        both = [torch.empty_like(value) for _ in range(2)]
                        distributed.all_gather(both, other[name])
                        assert torch.equal(*both), (estimator, name)
        """,
    )
    both.succeed()


def test_layers_that_pick_their_rows_in_one_process_alone_are_measured_in_both(two_processes):
    both = two_processes(
        """
        from avalanche_cetl import fisher_information

        class Experts(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

            def forward(self, x):
                out = self.one(x)
                if x.dim() == 2 and len(x) > 2 and not torch._C._functorch.is_batchedtensor(x):
                    large = x[:, 0] > 0
                    if bool(large.any()):
                        out = out.masked_scatter(large.unsqueeze(1), self.two(x[large]))
                else:
                    out = torch.where(x[:, :1] > 0, self.two(x), out)
                return out

        torch.manual_seed(0)
        model, x = Experts().double(), torch.randn(12, 3).double()
        x[:, 0] = -x[:, 0].abs()
        x[8:, 0] *= -1
        loss = lambda out: out.square().sum(1)
        whole = fisher_information(model, x, loss)
        own = slice(0, 6) if rank == 0 else slice(6, None)
        found = fisher_information(model, x[own], loss, process_group=world)
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
        """,
    )
    both.succeed()


def test_an_error_in_one_process_stops_the_other(two_processes):
    both = two_processes(
        """
        from avalanche_cetl import fisher_information

        def loss(out):
            if rank == 1:
                raise ArithmeticError("no luck")
            return out.sum(1)

        fisher_information(nn.Linear(2, 2), torch.randn(5, 2), loss, process_group=world)
        """,
    )
    first, second = both.finish()
    assert first.code > 0 and second.code > 0
    assert "process 1 failed: ArithmeticError: no luck" in first.errors
    assert "ArithmeticError: no luck" in second.errors


def test_a_missing_process_group_is_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="process_group needs torch"):
        fisher_information(model, torch.zeros(3, 2), process_group=object())


@pytest.mark.parametrize("within", [False, True])
def test_a_batch_of_samples_is_gone_when_the_next_one_is_captured(monkeypatch, within):
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    x, capture, before, alive = torch.randn(40, 6), per_sample.capture_for, [], []
    basis = kronecker_basis(net, x) if within else None

    def watched(*args):
        alive.append(sum(call() is not None for call in before))
        found = capture(*args)
        before[:] = [weakref.ref(call) for calls in found.calls.values() for call in calls]
        return found

    fisher_information(net, x, basis=basis)  # the routes are known from here on
    monkeypatch.setattr(per_sample, "capture_for", watched)
    collects = gc.isenabled()
    gc.disable()
    try:
        fisher_information(net, x, basis=basis, chunk_bytes=2**10)
    finally:
        if collects:
            gc.enable()
    # Of the three layers' calls the last one that was read may still be there.
    assert len(alive) > 3 and len(before) == 3 and max(alive) <= 1
