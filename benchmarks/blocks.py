"""Figures of the README and of the documentation, block by block, from the result files alone.

The README shows ``headline``; the pages below ``docs`` show the others (``{result-table}``).
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable
from typing import Any

from benchmarks import markdown
from benchmarks.continual import natural_table
from benchmarks.continual import page as continual
from benchmarks.records import RESULTS, mean_and_error, read

NETWORKS = {
    "cicnn": "CI-CNN, 128 x 3x32x32",
    "resnet26": "ResNet-26, 128 x 3x32x32",
    "resnet18": "ResNet-18, 64 x 3x64x64",
    "vit": "ViT-tiny, 64 x 3x64x64",
}
PEERS = {
    "ours": "ours",
    "torch_func": "torch.func",
    "backpack": "BackPACK",
    "opacus": "opacus",
    "avalanche_ewc": "EWCPlugin, batches of 1",
    "loop": "loop",
}
FAULTS = ("kills", "trials", "files")
#: Of the suite: what a user has, the task, and the row without CETL.
HAVE = {
    "10 labels per class (digits)": ("optdigits, 10 labels", "T2 alone"),
    "20 labels and 100 images without, per class (photographs)": (
        "CIFAR-10, 20 labels and 100 more images",
        "T2 alone",
    ),
    "labels in another domain only (digits)": ("digits-mini", "T2 alone"),
    "S and images, no label at all (digits)": ("MN-US, no source data", "S itself"),
}
#: Streams that had no part in the choice of the plugin's strength.
STREAM_OF = {
    "fashion-permuted": "ten tasks: clothes, their pixels in another order each",
    "rotated": "six tasks: digits, turned by 60 degrees more each",
}


def _results(name: str) -> Any:
    return read(RESULTS / name)


def _text(*sentences: str) -> str:
    joined = " ".join(sentences)
    return textwrap.fill(joined, 100, break_long_words=False, break_on_hyphens=False)


def demo_run() -> str:
    """Write what the demo prints, with seed 0."""
    from avalanche_cetl.demo import table_lines

    lines = table_lines(_results("demo/seed-0.json"))[1:]
    return "\n" + "\n".join(("    " + line).rstrip() for line in lines) + "\n"


def demo_seeds() -> str:
    """Return the demo's table over seeds."""
    return (RESULTS / "demo" / "table.md").read_text().strip()


def speed() -> str:
    """Write what Fisher information costs beside its rivals, the refresh and the penalty."""
    return "\n\n".join([_cost_of_fisher(), _cost_of_parts(), _cost_of_epochs(), _cost_of_basis()])


def _cost_of_fisher() -> str:
    """Write cost over a plain pass by network and library; the least is in bold, ours or not."""
    fisher = _results("speed/fisher.json")["results"]
    rows = []
    for network, title in NETWORKS.items():
        medians = [fisher[network].get(peer, {}).get("median") for peer in PEERS]
        cells = [
            "cannot" if value is None else f"{value:.2f}" if peer == "ours" else f"{value:.1f}"
            for peer, value in zip(PEERS, medians, strict=True)
        ]
        less_is_better = [None if value is None else -value for value in medians]
        rows.append([title, *markdown.bold_best(cells, less_is_better)])
    return markdown.table(["cost over a plain forward and backward pass", *PEERS.values()], rows)


def _cost_of_parts() -> str:
    fisher, refresh = (_results(f"speed/{name}.json")["results"] for name in ("fisher", "gfi"))
    penalty = _results("speed/penalty.json")["results"]["resnet18"]["median"]
    memory = _results("speed/memory.json")["results"]
    growth = _results("speed/growth.json")["results"]
    first = [f"{fisher[n]['ours']['first_call_with_planning']:.1f} ({n})" for n in NETWORKS]
    whole = [f"{refresh[n]['gaussian']['median']:.1f} ({n})" for n in NETWORKS]
    taken = [
        f"{memory[f'1024 images, chunk {chunk} MiB']['extra_bytes'] >> 20} MiB of memory with "
        f"`chunk_bytes` of {chunk} MiB"
        for chunk in (128, 512)
    ]
    return _text(
        "Medians, each network in one process on two CPU cores (`python -m "
        "benchmarks.speed fisher`; ranges, versions and errors in "
        "[benchmarks/results/speed](benchmarks/results/speed)). The first call on a model "
        f"costs more, because routes are planned then: {', '.join(first)}. A whole GFI "
        "refresh (both Fishers, `gaussian` relative Fisher, gate) costs "
        f"{', '.join(whole)} times one Fisher per loss. Of 1,024 images it takes "
        f"{' and '.join(taken)}. The "
        f"penalty with its backward pass costs {penalty:.2f} of EWCPlugin's on ResNet-18. "
        f"Cost grows with the samples to the power {growth['samples']['exponent']:.2f} and "
        f"with the parameters to {growth['parameters']['exponent']:.2f}."
    )


def _cost_of_epochs() -> str:
    epoch = _results("speed/epoch.json")["results"]
    cost = {name: f"{row['median']:.1f}" for name, row in epoch["plugins"].items()}
    return _text(
        f"An epoch of a second experience ({epoch['images']:,} images, CI-CNN, batch 128) "
        f"costs {cost['GFIPlugin, 256 images']} times Naive's with `GFIPlugin` and its 256 "
        f"images, {cost['EWCPlugin']} with `EWCPlugin`, which reads all images once, "
        f"{cost['no gate, all images']} with ours on all images without the gate and "
        f"{cost['GFIPlugin, all images']} with it. A CETL round costs "
        f"{epoch['round']['CETLStrategy, e']['median']:.2f} (`e`), "
        f"{epoch['round']['CETLStrategy, fi']['median']:.2f} (`fi`) and "
        f"{epoch['round']['CETLStrategy, gfi']['median']:.2f} (`gfi`) of a loop written by "
        "hand without Avalanche that does the same passes and measurements."
    )


def _cost_of_basis() -> str:
    found = _results("speed/kronecker.json")["results"]
    measured, paid = found["measurement"], found["iteration"]
    names = {"cicnn": "CI-CNN", "resnet26": "ResNet-26"}
    counts = [key for key in paid if key.endswith("experiences")]
    parts = {
        what: " and ".join(
            f"{measured[n][what]['median']:.2f} ({names[n]})" for n in names if n in measured
        )
        for what in ("fisher in the basis", "basis")
    }
    theirs = [
        f"{measured[n][peer]['median']:.0f} ({names[n]})"
        for peer in ("curvlinops' EKFAC",)
        for n in names
        if "median" in measured.get(n, {}).get(peer, {})
    ]

    def over(name: str) -> str:
        return ", ".join(f"{paid[count][name]['median']:.2f}" for count in counts)

    most = max(
        paid[count][f"kronecker, {penalty}, {mode}"]["bytes"] / paid["network bytes"]
        for count in counts
        for penalty in ("proximal", "loss")
        for mode in ("separate", "online")
    )
    said = f" (curvlinops' EKFAC operator, all directions: {', '.join(theirs)})" if theirs else ""
    return _text(
        f"In the Kronecker basis Fisher information costs {parts['fisher in the basis']} plain "
        f"passes, and the basis itself with its eigenvectors {parts['basis']}{said}. What "
        f"GFIPlugin adds to an iteration does not grow with the old experiences: after "
        f"{', '.join(count.removesuffix(' experiences') for count in counts)} of them "
        f"{over('kronecker, proximal, separate')} of CI-CNN's forward and backward pass of 32 "
        f"images (in the loss {over('kronecker, loss, separate')}; diagonal "
        f"{over('diagonal, proximal, separate')}; EWCPlugin {over('EWCPlugin')}). All that it "
        f"holds is at most {most:.1f} times the network (`python -m benchmarks.speed kronecker`, "
        "one thread)."
    )


def features() -> str:
    """Write what the feature store gains."""
    found = _results("speed/features.json")["results"]
    rounds, extraction, probe = found["round"], found["extraction"], found["probe"]
    rate = 1 / extraction["extraction, nothing stored"]["median"]
    return _text(
        f"With tf_efficientnet_lite0 at 128 px and CI-CNN on {found['round_images']:,} images of "
        f"{found['data']}, a round with the source network run live costs "
        f"{rounds['e, S live']['median']:.1f} times one with stored features in variant `e`, and "
        f"{rounds['gfi, S live']['median']:.1f} times in `gfi`. Extraction has "
        f"{rate:.2f} of the bare forward pass's throughput. A linear probe gets "
        f"{100 * probe['float32']['test_accuracy']:.1f} % on features in single and "
        f"{100 * probe['float16']['test_accuracy']:.1f} % in half precision (4,000 training and "
        "1,000 test images; `python -m benchmarks.speed features`, two CPU cores)."
    )


def validators() -> str:
    """Write how well each score follows target accuracy, and what it chooses."""
    from benchmarks.validators import DIRECTIONS, SCORES, correlations

    runs = {d: _results(f"validators/{d}.json")["runs"] for d in DIRECTIONS}
    header, columns = ["score"], [list(SCORES)]
    for direction in DIRECTIONS:
        found = [correlations(runs[direction], score) for score in SCORES]
        over = []
        for name in ("rounds", "settings", "all"):
            values = [round(one[name], 2) for one in found]
            over.append(markdown.bold_best([f"{value:+.2f}" for value in values], values))
        chosen = [round(100 * one["chosen"], 1) for one in found]
        columns.append([", ".join(cells) for cells in zip(*over, strict=True)])
        columns.append(markdown.bold_best([f"{value:.1f} %" for value in chosen], chosen))
        header += [f"{direction}: over rounds, settings, all", "chosen"]
    rows = list(zip(*columns, strict=True))
    best = [max(r["accuracy"] for one in runs[d] for r in one["rounds"]) for d in DIRECTIONS]
    count = sum(len(one["rounds"]) for one in runs[DIRECTIONS[0]])
    note = _text(
        f"Rank correlation of each score with target accuracy over {count} networks a direction "
        f"({len(runs[DIRECTIONS[0]])} settings, every round), and the accuracy of the network that "
        f"the score chooses; the best networks have "
        f"{100 * best[0]:.1f} % ({DIRECTIONS[0]}) and {100 * best[1]:.1f} % ({DIRECTIONS[1]}). "
        "One seed, 2,000 MNIST and 1,800 USPS training images (`python -m benchmarks.validators`)."
    )
    return markdown.table(header, rows) + "\n\n" + note


def faults() -> str:
    """Write what was done to runs and files on purpose, and what was lost."""
    found = {part: _results(f"faults/{part}.json")["found"] for part in FAULTS}
    kills, trials, files = (found[part] for part in FAULTS)
    checkpoints, stores = files["checkpoints"], files["feature stores"]
    other = len(checkpoints["other errors"]) + len(stores["other errors"])
    cost = _results("speed/checkpoint.json")["results"]
    return _text(
        f"`python -m benchmarks.faults`: {kills['killed']} runs killed by SIGKILL, "
        f"{kills['random']} at random moments and {kills['at chosen moments']} at chosen ones (in "
        "each stage, while GFI is measured, while a checkpoint is written, named or removed); "
        f"{kills['same end']} of them went on to the same weights, metrics and log, bit for bit. "
        f"{len(trials)} faults tried one by one (full disks, broken images, gradients and files, "
        "dying workers), each with a clear error or a right result. "
        f"{checkpoints['mutated'] + stores['mutated']:,} mutated files: "
        f"{checkpoints['damaged, refused'] + checkpoints.get('damaged, read', 0):,} damaged "
        f"checkpoints, of which {checkpoints['damaged, refused']:,} were refused; "
        f"{checkpoints['forged, refused'] + checkpoints.get('forged, read', 0):,} forged ones with "
        f"a checksum that fits, of which {checkpoints['forged, refused']:,} were refused and the "
        f"rest changed numbers only; {stores['mutated']:,} damaged feature stores, "
        f"{stores['right features']:,} of which gave the right features again. Other errors: "
        f"{other}; files opened elsewhere: {len(files['opened elsewhere'])}; at most "
        f"{max(checkpoints['memory added, MiB'], stores['memory added, MiB'])} MiB of memory "
        "added. Lost: nothing but the round that was running. A checkpoint of a round with CI-CNN "
        f"and {cost['images']:,} images takes {100 * cost['e']['saving over a round']:.1f} % of "
        f"the round in variant `e`, {100 * cost['gfi']['saving over a round']:.1f} % in `gfi`, and "
        f"{cost['gfi']['bytes over those of its tensors']:.3f} times the bytes of its tensors."
    )


def headline() -> str:
    """Write what a user gains, in six rows; one whose runs are not all there is left out."""
    rows = [*_gains_of_cetl(), *_gains_of_the_plugin()]
    note = _text(
        "Test accuracy in %, means ± standard errors over three seeds; streams over five; S itself "
        "is one network. Our settings were chosen on other images and streams, the rivals' "
        "strengths on these streams. Commands: `python -m benchmarks.suite`, "
        "`python -m benchmarks.continual.natural`."
    )
    return markdown.table(["what you have", "without", "with", "how"], rows) + "\n\n" + note


def _gains_of_cetl() -> list[list[str]]:
    from benchmarks.suite.page import BEST, accuracies, tested
    from benchmarks.suite.runs import S_ITSELF
    from benchmarks.suite.tasks import TASKS

    rows = []
    for have, (task, without) in HAVE.items():
        runs = tested(task)
        seeds = len(TASKS[task].seeds)
        wanted = {without: 1 if without == S_ITSELF else seeds, BEST: seeds}
        if all(len(runs.get(row, [])) == count for row, count in wanted.items()):
            first, second = (mean_and_error(accuracies(runs[row])) for row in wanted)
            how = "`CETLStrategy(...)`"
            rows.append([have, f"{first} ({without})", second, how])
    return rows


def _gains_of_the_plugin() -> list[list[str]]:
    """Return the rows of the plugin, beside the best tuned rival of each stream."""
    runs, rows = _results("continual/natural.json")["runs"], []
    for stream, have in STREAM_OF.items():
        own = natural_table.averages(runs, stream, "GFIPlugin", "adam", natural_table.FIVE)
        rivals = {
            name: natural_table.rival(runs, stream, methods)[1]
            for name, methods in natural_table.LATER.items()
        }
        if all(len(found) == len(natural_table.FIVE) for found in (own, *rivals.values())):
            name = max(rivals, key=lambda name: statistics.mean(rivals[name].values()))
            first, second = (mean_and_error([*found.values()]) for found in (rivals[name], own))
            rows.append([have, f"{first} ({name}, tuned)", second, "`GFIPlugin()`"])
    return rows


BLOCKS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "demo run": demo_run,
    "demo seeds": demo_seeds,
    "features": features,
    "continual": continual.average_accuracies,
    "continual gains": continual.gains,
    "validators": validators,
    "speed": speed,
    "faults": faults,
}
