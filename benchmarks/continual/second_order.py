"""What a quadratic cannot see: `python -m benchmarks.continual.second_order`.

The stream of ``benchmarks.continual.permutations``, three passes, GFIPlugin as it comes. For the
experience ``--experience``: how the logits on each old task's test images change in it (root mean
square over classes, about their mean), how the exact first-order change, of a Jacobian-vector
product, does, and the accuracies before, after and to first order. Results go to
``benchmarks/results/continual/second_order.json``.
"""

from __future__ import annotations

import argparse
import os
import warnings

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from avalanche_cetl import GFIPlugin
from benchmarks.continual.permutations import BATCH, network, orders
from benchmarks.continual.runs import _benchmark, cut_from_tensors
from benchmarks.continual.streams import Part, Stream, mnist
from benchmarks.records import RESULTS, versions, write

FILE = RESULTS / "continual" / "second_order.json"
PASSES, TESTED = 3, 2000


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the weights."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changes(model: nn.Module, before: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the change of the logits since, as it is and to first order."""
    now = weights(model)
    moved = {name: now[name] - before[name] for name in now}

    def logits(params: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(model, params, (x,))
        return found

    old, linear = jvp(logits, (before,), (moved,))
    found = {"before": old, "after": logits(now), "to first order": old + linear}
    result = {n: round(100 * float((z.argmax(1) == y).float().mean()), 1) for n, z in found.items()}
    for name, change in (("change", found["after"] - old), ("linear", linear)):
        result[name] = round(
            float((change - change.mean(1, keepdim=True)).square().mean().sqrt()), 3
        )
    return result


def main() -> None:
    """Train up to the experience, and write what it changed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experience", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-root", default=os.environ.get("CETL_DATA"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    (x, y), (u, v) = mnist(args.data_root)
    drawn, model = orders(args.experience + 1, args.seed), network(args.seed)
    strategy = cut_from_tensors()(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        train_epochs=PASSES,
        plugins=[GFIPlugin()],
        evaluator=None,
    )
    torch.manual_seed(args.seed)
    before = weights(model)
    tasks = [(Part(x, y, order),) * 3 for order in drawn]
    for experience in _benchmark(Stream(lambda *_: [], ()), tasks):
        before = weights(model)
        strategy.train(experience)
    model.eval()
    images = u.flatten(1)[:TESTED]
    found = [changes(model, before, images[:, order], v[:TESTED]) for order in drawn[:-1]]
    settings = vars(args) | {"passes": PASSES, "tested": TESTED}
    del settings["data_root"]
    write(FILE, {"settings": settings, "old tasks": found, "versions": versions()})
    for one in found:
        print(one)


if __name__ == "__main__":
    main()
