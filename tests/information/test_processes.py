"""The same samples on one process and shared out to two, over gloo."""

import pytest
import torch

from avalanche_cetl import fisher_information


def test_two_processes_give_what_one_does(two_processes):
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
            for normalize_samples in (False, True):
                for chunk in (2**29, 2**15):
                    options = dict(
                        estimator=estimator, normalize_samples=normalize_samples, chunk_bytes=chunk
                    )
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


def test_layers_that_pick_their_rows_in_one_process_alone(two_processes):
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


def test_what_one_process_meets_stops_the_other(two_processes):
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


def test_a_group_that_is_not_there():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="init_process_group"):
        fisher_information(model, torch.zeros(3, 2), process_group=object())


def test_gfi_plugin_in_two_processes_holds_what_it_holds_in_one(two_processes):
    both = two_processes(
        """
        from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.training.supervised import Naive
        from torch.nn.parallel import DistributedDataParallel
        from torch.utils.data import TensorDataset
        from avalanche_cetl import GFIPlugin
        from avalanche_cetl.plugins import gfi as plugins

        torch.manual_seed(0)
        sets = []
        for _ in range(2):
            data = TensorDataset(torch.randn(31, 6), torch.randint(3, (31,)))
            data.targets = data.tensors[1]
            sets.append(as_classification_dataset(data))
        stream = with_classes_timeline(benchmark_from_datasets(train=sets)).train_stream

        def run(shared):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
            plugin = GFIPlugin(1.0)
            bare = model
            if shared:
                model = DistributedDataParallel(model)
            strategy = Naive(
                model=model, optimizer=torch.optim.SGD(bare.parameters(), 0.1),
                criterion=lambda out, y: F.cross_entropy(out, y), train_mb_size=8,
                plugins=[plugin], evaluator=None,
            )
            strategy.make_train_dataloader = lambda **kw: setattr(
                strategy, "dataloader",
                [(strategy.adapted_dataset[i:i+1][0][0].double()[None],
                  torch.tensor([strategy.adapted_dataset[i][1]]), torch.zeros(1, dtype=int))
                 for i in range(4)],
            )
            sample = plugin._sample
            plugin._sample = lambda *a: (lambda r: (r[0].double(), *r[1:]))(sample(*a))
            gated = []
            before = plugin.before_backward
            plugin.before_backward = lambda s, **kw: (gated.append(plugin.gated), before(s, **kw))
            for experience in stream:
                strategy.train(experience)
            return plugin, gated[-1]

        shared, held = run(True)
        assert plugins._share(10)[1] is not None
        plugins._share = lambda rows: (slice(None), None)
        alone, wanted = run(False)
        assert list(held) == list(wanted) == [0]
        pairs = ((shared.importances[1], alone.importances[1]), (held[0], wanted[0]))
        for found, expected in pairs:
            assert list(found) == list(expected)
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
        assert any(float((v == 0).sum()) for v in held[0].values())
        """,
    )
    both.succeed()
