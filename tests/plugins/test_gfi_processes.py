"""GFIPlugin in one process and in two, over gloo."""

import pytest


@pytest.mark.parametrize(
    ("basis", "fisher"),
    [("diagonal", "sampled"), ("kronecker", "sampled"), ("kronecker", "logits")],
)
def test_gfi_plugin_in_two_processes_holds_what_it_holds_in_one(two_processes, basis, fisher):
    both = two_processes(
        """
        from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
        from avalanche.benchmarks.utils import as_classification_dataset
        from avalanche.training.supervised import Naive
        from torch.nn.parallel import DistributedDataParallel
        from torch.utils.data import TensorDataset
        from avalanche_cetl import GFIPlugin
        from avalanche_cetl.common.processes import Processes

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
            plugin = GFIPlugin(
                1.0, basis=BASIS, fisher=FISHER, threshold=0.5, probability=0.9
            )
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
            sample, check = plugin.measurer.sample, plugin.measurer.check
            double = lambda s: s._replace(images=s.images.double())
            plugin.measurer.sample = lambda rows: double(sample(rows))
            plugin.measurer.check = lambda network, s: check(network, double(s))
            gated = []
            before = plugin.before_backward
            plugin.before_backward = lambda s, **kw: (gated.append(plugin.gated), before(s, **kw))
            for experience in stream:
                strategy.train(experience)
            return plugin, gated[-1]

        shared, held = run(True)
        assert Processes.started().share_of_rows(10)[1] is not None
        Processes.share_of_rows = lambda self, rows: (slice(None), None)
        alone, wanted = run(False)
        assert list(held) == list(wanted) == [0]
        pairs = ((shared.importances[1], alone.importances[1]), (held[0], wanted[0]))
        for found, expected in pairs:
            assert list(found) == list(expected)
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
        assert any(float((v == 0).sum()) for v in held[0].values())
        """.replace("BASIS", repr(basis)).replace("FISHER", repr(fisher)),
    )
    both.succeed()
