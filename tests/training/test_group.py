"""Two processes against one, with the same data order, mini-batches and weights."""

import json
import signal

import pytest
import torch

SCRIPT = """
import datetime, json, os, signal, sys
import torch
from torch import distributed, nn
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche_cetl import (
    CETLPlugin, CETLStrategy, CheckpointPlugin, CoupledModel, GFISettings,
    ModuleEncoder, ViewConsistency, load_checkpoint, transfer_benchmark,
)

from avalanche_cetl.training import ClassifyStage, TrainingStage, Variant

home, tasks = sys.argv[1], json.loads(sys.argv[2])
rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if size > 1:
    distributed.init_process_group(
        "gloo", init_method=f"file://{home}/store", rank=rank, world_size=size,
        timeout=datetime.timedelta(minutes=10),  # the test gives up first
    )

SHAPE = (1, 8, 8)
def made(count, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = 0.2 * torch.rand(count, *SHAPE, generator=g)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, 1 + 2 * label : 3 + 2 * label] += 0.6
    return images, labels

class Headed(TrainingStage):
    name, trains, names = "headed", ("target",), ("L_rt",)

    def make_module(self, model):
        return nn.Linear(model.code_dim, 2)

    def losses(self, networks, batch):
        code, _ = networks.encode(batch.images, batch.tasks)
        return {"L_rt": (networks.modules[self.name](code) - 1).square().mean()}

VARIANTS = {"headed": Variant("headed", (Headed(), ClassifyStage()))}

def work(folder, task):
    torch.manual_seed(rank)  # the processes start with other weights; the first one's count
    source = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for p in source.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(5)) / 4)
    target = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3),
    )
    model = CoupledModel.build(ModuleEncoder(source, input_shape=SHAPE), target, SHAPE)
    class Death(CETLPlugin):
        def after_step(self, strategy, *args, **kwargs):
            if rank and "die" in task and strategy.clock.train_exp_epochs == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        def state_dict(self): return {}
        def load_state_dict(self, state): pass

    plugins = [Death()]
    if task.get("plugins"):
        plugins += [ViewConsistency(1.0, balance=0.0)]
    if task.get("checkpoints"):
        plugins.append(CheckpointPlugin(f"{folder}/checkpoints", keep=99))
    evaluator = EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, stream=True), loss_metrics(epoch=True),
        loggers=[],
    )
    strategy = CETLStrategy(
        model=model, optimizer=torch.optim.SGD(model.parameters(), 0.02, momentum=0.9),
        preset="paper", variant=VARIANTS.get(task["variant"], task["variant"]),
        alternate=task.get("alternate", "epoch"),
        dwa_lambda=task.get("dwa_lambda", 0.1),
        gfi=GFISettings(samples=10, **task.get("gfi", {})), warmup_epochs=1, train_mb_size=8,
        accumulate=task.get("accumulate", 1),
        train_epochs=task.get("rounds", 2), eval_mb_size=16, plugins=plugins, evaluator=evaluator,
    )
    benchmark = transfer_benchmark(made(task["rows"], 0), made(20, 1), labels_per_class=5)
    rounds = []
    class Rounds(CETLPlugin):
        def after_round(self, strategy, *args, **kwargs):
            rounds.append(strategy.round_losses)
        def state_dict(self): return {}
        def load_state_dict(self, state): pass
    strategy.plugins.insert(0, Rounds())
    torch.manual_seed(3)
    if task.get("resume"):
        load_checkpoint(strategy, task["resume"])
    strategy.train(benchmark.train_stream, eval_streams=[], num_workers=task.get("workers", 0))
    strategy.eval(benchmark.test_stream)
    weights = model.state_dict()
    for module in strategy.networks.modules.values():
        weights |= {f"own.{name}": value for name, value in module.state_dict().items()}
    torch.save(weights, f"{folder}/weights{rank}.pt")
    kept = {}
    for one in strategy.importance.values():
        kept |= {name: float(value.sum()) for name, value in one.values.items()}
    found = {"rounds": rounds, "metrics": strategy.evaluator.get_all_metrics(), "importance": kept}
    open(f"{folder}/found{rank}.json", "w").write(json.dumps(found))

for name, task in tasks.items():
    os.makedirs(f"{home}/{name}", exist_ok=True)
    work(f"{home}/{name}", task)
"""


def start(partners, folder, tasks, size):
    folder.mkdir()
    for rank in range(size):
        group = {"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}
        partners.start(SCRIPT, folder, json.dumps(tasks), **group)


def read(folder, tasks, size):
    """Give weights and findings of every task, which all processes agree on."""
    results = {}
    for name in tasks:
        weights = [torch.load(folder / name / f"weights{rank}.pt") for rank in range(size)]
        for other in weights[1:]:
            assert all(torch.equal(weights[0][n], other[n]) for n in other)
        files = [folder / name / f"found{rank}.json" for rank in range(size)]
        found = [json.loads(file.read_text()) for file in files]
        assert all(other == found[0] for other in found), "the processes disagree"
        results[name] = weights[0], found[0]
    return results


def assert_close(mine, its):
    (weights, found), (others, want) = mine, its
    for one, other in zip(found["rounds"], want["rounds"], strict=True):
        assert one.keys() == other.keys() and {"L_rt", "L_c"} <= one.keys()
        for name in one:
            assert one[name] == pytest.approx(other[name], abs=1e-4), name
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], atol=1e-4, rtol=1e-3)
    assert found["importance"] == pytest.approx(want["importance"], rel=1e-2, abs=1e-3)
    assert found["metrics"].keys() == want["metrics"].keys()
    for name, (steps, values) in found["metrics"].items():
        assert steps == want["metrics"][name][0]
        assert values == pytest.approx(want["metrics"][name][1], abs=1e-4), name


TASKS = {
    "e": {"variant": "e", "rows": 17},  # in the last mini-batch the second process has no row
    "module": {"variant": "headed", "rows": 21},
    "iteration": {"variant": "gfi", "rows": 22, "alternate": "iteration"},
    "joint": {"variant": "joint", "rows": 19, "workers": 1},
    "accumulate": {"variant": "gfi", "rows": 21, "accumulate": 2, "plugins": True},
    "kronecker": {"variant": "fi", "rows": 21, "gfi": {"basis": "kronecker"}, "dwa_lambda": 0.01},
}


GATED = {"basis": "kronecker", "rank": 4, "threshold": 0.5, "probability": 0.9}
SAVED = {"variant": "gfi", "rows": 21, "rounds": 2, "checkpoints": True}
SAVED |= {"gfi": GATED, "dwa_lambda": 0.01}


def test_two_processes_give_the_losses_and_weights_of_one_and_go_on_where_they_were(
    tmp_path, partners
):
    start(partners, tmp_path / "one", {n: {**t, "workers": 0} for n, t in TASKS.items()}, 1)
    saved = tmp_path / "two" / "whole" / "checkpoints" / "checkpoint-000001.safetensors"
    more = {"whole": SAVED, "again": {**SAVED, "resume": str(saved)}}
    start(partners, tmp_path / "two", {**TASKS, **more}, 2)
    partners.succeed()
    one, two = read(tmp_path / "one", TASKS, 1), read(tmp_path / "two", {**TASKS, **more}, 2)
    for name in TASKS:
        assert_close(two[name], one[name])
    (weights, found), (others, want) = two["again"], two["whole"]
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert found["metrics"] == want["metrics"]
    again = tmp_path / "two" / "again" / "checkpoints"
    assert len(list(again.iterdir())) == 1


def test_a_dead_process_ends_the_others_with_a_message(tmp_path, partners):
    task = {"variant": "e", "rows": 60, "rounds": 50, "die": True}
    start(partners, tmp_path / "all", {"dead": task}, 2)
    first, second = partners.finish()
    assert second.code == -signal.SIGKILL
    assert first.code > 0
    assert "another process of the group ended" in first.errors
