"""Tables of the search for one strength: `python -m benchmarks.continual.natural_table`.

Rivals have the best of their strengths on the stream's first seed, and that on its other seeds: on
the first seed the choice favours them. Reads ``natural.json`` alone.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_cetl.evaluation import picture
from benchmarks import markdown
from benchmarks.continual.natural import FILE
from benchmarks.markdown import table
from benchmarks.records import cell, read

Run = dict[str, Any]
Averages = dict[int, float]

CHOOSING = {"odd-even": (2, 3, 4), "split": (2, 3, 4), "permuted": (2, 3, 4), "cifar-split": (2, 3)}
READ_ONCE = {
    name: (13, 14) for name in ("rotated", "fashion-permuted", "fashion-split", "cifar-domains")
}
#: Seeds of the streams that were read once, when they were run again.
FIVE = (13, 14, 15, 16, 17)
#: Seeds of the stream of photographs on a pretrained network.
PRETRAINED = (13, 14)
SGD = {"odd-even": (2, 3), "permuted": (2, 3)}
STRENGTHS = (3, 5, 10)
CHOSEN = 5
RIVALS = {
    "EWC": [f"EWC:strength={s}" for s in (100, 1000, 10000)],
    "Kronecker as it was": [f"Kronecker:strength={s},penalty=loss" for s in (0.001, 0.01, 0.1)],
}
#: Strengths that were tried after the others: where EWC's best was the last, and other rivals.
LATER = {
    "EWC": [f"EWC:strength={s}" for s in (100, 1000, 10000, 100000, 1000000)],
    "MAS": [f"MAS:strength={s}" for s in (0.01, 0.1, 1, 10)],
    "LwF": [f"LwF:strength={s}" for s in (1, 3, 10, 30)],
}
#: Of the table of five seeds: the rivals, and EWC in rotated coordinates, which is none of
#: Avalanche's.
AGAIN = LATER | {"R-EWC": [f"R-EWC:strength={s}" for s in (0.1, 1, 10, 100, 1000, 10000, 100000)]}
OF_SGD = {"EWC": [f"EWC:strength={s}" for s in (1, 10, 100, 1000)]}


def setting(strength: float, more: str = "") -> str:
    """Return the name of the method that is to be the default."""
    return f"natural:strength={strength},units=mix,rest=0.03{more}"


def averages(
    runs: list[Run],
    stream: str,
    method: str,
    optimiser: str,
    seeds: Any,
    what: str = "average_accuracy",
) -> Averages:
    """Return the average accuracies of a method that did not fail, by seed, or another figure."""
    return {
        run["seed"]: run[what]
        for run in runs
        if (run["stream"], run["method"], run["optimiser"]) == (stream, method, optimiser)
        and run["seed"] in seeds
        and "average_accuracy" in run
    }


def best(runs: list[Run], stream: str, methods: list[str], optimiser: str, seeds: Any) -> str:
    """Return the method of the highest average accuracy on the first seed; empty: none was run."""
    found = {m: averages(runs, stream, m, optimiser, seeds[:1]) for m in methods}
    values = {m: one[seeds[0]] for m, one in found.items() if one}
    return max(values, key=values.__getitem__, default="")


def strengths(runs: list[Run]) -> str:
    """Write the average accuracy at each strength, by stream, and the mean over streams."""
    rows, means = [], []
    for stream, seeds in CHOOSING.items():
        found = [averages(runs, stream, setting(s), "adam", seeds) for s in STRENGTHS]
        rows.append([stream, *(cell(list(one.values())) for one in found)])
        if all(found):
            means.append([statistics.mean(one.values()) for one in found])
    rows.append([f"mean of {len(means)} streams", *(cell([m]) for m in np.mean(means, 0))])
    return table(["", *map(str, STRENGTHS)], rows)


def compared(
    runs: list[Run],
    streams: dict[str, Any],
    ours: str,
    optimiser: str = "adam",
    rivals: dict[str, list[str]] = RIVALS,
) -> str:
    """Write every seed's average accuracies, and differences to the rivals at their best."""
    rows: list[list[str]] = []
    overall: dict[str, list[float]] = {name: [] for name in rivals}
    for stream, seeds in streams.items():
        own = averages(runs, stream, ours, optimiser, seeds)
        naive = averages(runs, stream, "Naive", optimiser, seeds)
        line = [stream, _shown(own), _shown(naive)]
        for name, methods in rivals.items():
            chosen = best(runs, stream, methods, optimiser, seeds)
            other = averages(runs, stream, chosen, optimiser, seeds)
            apart = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
            strength = chosen.partition("=")[2].partition(",")[0]
            line += [f"{_shown(other)} ({strength})" if other else "", cell(apart, sign=True)]
            overall[name] += [statistics.mean(apart)] if apart else []
        rows.append(line)
    last = ["mean over streams", "", ""]
    for differences in overall.values():
        last += ["", cell(differences, sign=True)]
    header = [part for name in rivals for part in (name, "ahead of it by")]
    return table(["", "setting", "Naive", *header], [*rows, last])


def rival(runs: list[Run], stream: str, methods: list[str]) -> tuple[str, Averages]:
    """Return the best of some strengths on a stream that was read once, and its five seeds."""
    chosen = best(runs, stream, methods, "adam", READ_ONCE[stream])
    return chosen, averages(runs, stream, chosen, "adam", FIVE)


def again(runs: list[Run]) -> str:
    """Write means over five seeds of ``GFIPlugin()``, and of rivals at the strengths of above."""
    rows: list[list[str]] = []
    ahead: list[float] = []
    beyond: list[float] = []
    for stream in READ_ONCE:
        own = averages(runs, stream, "GFIPlugin", "adam", FIVE)
        line = [stream, _mean(own), _mean(averages(runs, stream, "Naive", "adam", FIVE))]
        apart: dict[str, list[float]] = {}
        for name, methods in AGAIN.items():
            chosen, other = rival(runs, stream, methods)
            apart[name] = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
            line.append(f"{_mean(other)} ({chosen.partition('=')[2]})")
        rotated = apart.pop("R-EWC")
        nearest = min(filter(None, apart.values()), key=statistics.mean, default=[])
        line += [cell(nearest, sign=True), cell(rotated, sign=True)]
        ahead += [statistics.mean(nearest)] if nearest else []
        beyond += [statistics.mean(rotated)] if rotated else []
        rows.append(line)
    last = [cell(ahead, sign=True), cell(beyond, sign=True)]
    rows.append(["mean over streams", *[""] * (2 + len(AGAIN)), *last])
    told = ("ahead of the best of Avalanche's by", "ahead of R-EWC by")
    return table(["", "GFIPlugin()", "Naive", *AGAIN, *told], rows)


def pretrained(runs: list[Run]) -> str:
    """Write what a network that knows ImageNet has after the stream, and has learnt on the way.

    Rivals at the best strength of the first seed, on the very figures that are shown.
    """
    stream, seeds = "cifar-pretrained", PRETRAINED
    rows, means = [], []
    chosen = {name: best(runs, stream, methods, "adam", seeds) for name, methods in LATER.items()}
    for name, method in {"GFIPlugin()": "GFIPlugin", "Naive": "Naive", **chosen}.items():
        own = averages(runs, stream, method, "adam", seeds)
        learnt = averages(runs, stream, method, "adam", seeds, "learnt")
        strength = method.partition("=")[2]
        tried = [len(averages(runs, stream, m, "adam", seeds[:1])) for m in LATER.get(name, [])]
        told = f"{name} ({strength}, best of {sum(tried)})" if strength else name
        rows.append([told, _shown(own), cell(list(own.values())), _mean(learnt)])
        means.append(statistics.mean(own.values()) if own else None)
    markdown.bold_column(rows, 2, means)
    return table(["", "by seed", "mean", "of each task at its end"], rows)


def measured(runs: list[Run]) -> str:
    """Write average accuracies by the number of images that a measurement reads."""
    methods = ["GFIPlugin", *(f"GFIPlugin:samples={count}" for count in (1000, 2000))]
    rows = [
        [stream, *(_mean(averages(runs, stream, method, "adam", (2, 3))) for method in methods)]
        for stream in CHOOSING
    ]
    return table(["", "256", "1,000", "2,000"], rows)


def replayed(runs: list[Run]) -> str:
    """Write average accuracies by the number of old images, with and without the plugin."""
    rows = []
    for count in (0, 50, 200, 500):
        names = ("Naive", "GFIPlugin") if not count else ("Replay", "GFIPlugin+Replay")
        more = f":memory={count}" if count else ""
        alone, both = (averages(runs, "split", n + more, "adam", (2, 3, 4)) for n in names)
        apart = [both[seed] - alone[seed] for seed in sorted(alone.keys() & both.keys())]
        rows.append([str(count), _mean(alone), _mean(both), cell(apart, sign=True)])
    return table(["old images", "without GFIPlugin", "with it", "difference"], rows)


def _mean(values: Averages) -> str:
    return cell([values[seed] for seed in sorted(values)])


def _shown(values: Averages) -> str:
    return " / ".join(f"{values[seed]:.1f}" for seed in sorted(values))


#: What readers know each stream by.
TITLES = {
    "odd-even": "odd or even digit", "split": "new digits, one head", "permuted": "permuted digits",
    "cifar-split": "new photographs, one head", "rotated": "rotated digits",
    "fashion-permuted": "permuted clothes", "fashion-split": "new clothes, one head",
    "cifar-domains": "new kinds of photographs",
}  # fmt: skip


def draw(runs: list[Run], file: Path) -> None:
    """Draw the average accuracies of plain training, tuned EWC and the default, by stream.

    Means over the seeds of each stream; EWC at the best of its strengths, tried later or not.
    """
    marks = {"plain training": ("#000000", "|"), "EWC, tuned": ("#0072B2", "s"),
             "GFIPlugin()": ("#D55E00", "o")}  # fmt: skip
    mark = {"linestyle": "", "markersize": 9, "markeredgewidth": 2}
    styles = {
        name: {"color": color, "marker": marker, **mark} for name, (color, marker) in marks.items()
    }
    rows = []
    for stream, seeds in (CHOOSING | READ_ONCE).items():
        tuned = best(runs, stream, [*LATER["EWC"], *RIVALS["EWC"]], "adam", seeds)
        found = [
            averages(runs, stream, method, "adam", seeds)
            for method in ("Naive", tuned, setting(CHOSEN))
        ]
        rows.append((TITLES[stream], [statistics.mean(one.values()) for one in found]))
    rows.sort(key=lambda row: row[1][-1])
    figure, axes = picture(size=(7.6, 3.5))
    for place, (_, values) in enumerate(rows):
        axes.hlines(place, min(values), max(values), color="#bbbbbb", zorder=1)
        for value, style in zip(values, styles.values(), strict=True):
            axes.plot(value, place, zorder=2, **style)
        axes.annotate(
            f"{values[-1]:.0f}", (values[-1], place), (8, 0), textcoords="offset points",
            va="center", color=styles["GFIPlugin()"]["color"],
        )  # fmt: skip
    for name, style in styles.items():
        axes.plot([], [], label=name, **style)
    axes.set_yticks(range(len(rows)), [title for title, _ in rows])
    axes.set(xlabel="accuracy over all tasks after the last one, %", xlim=(0, 100))
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(file)


def movement(runs: list[Run]) -> str:
    """Write rank correlations of predicted movement and forgetting, over tasks and runs."""
    rows, everything = [], []
    for stream in dict.fromkeys(run["stream"] for run in runs if "moved" in run):
        points, within = [], []
        for run in runs:
            if run["stream"] != stream or "moved" not in run or run["optimiser"] != "adam":
                continue
            lost = np.subtract(run["own"], run["last"])[:-1]
            points += list(zip(run["moved"][:-1], lost, strict=True))
            within.append(spearman(run["moved"][:-1], lost))
        everything += points
        known = [float(value) for value in within if np.isfinite(value)]
        rows.append(
            [stream, str(len(points)), f"{spearman(*np.transpose(points)):.2f}", cell(known, 2)]
        )
    rows.append(["all", str(len(everything)), f"{spearman(*np.transpose(everything)):.2f}", ""])
    return table(["", "tasks", "over tasks and runs", "within a run"], rows)


def spearman(one: Any, other: Any) -> float:
    """Compute the rank correlation, ties at their mean rank; NaN where one does not vary."""
    ranks = []
    for values in (np.asarray(one, float), np.asarray(other, float)):
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(count) - (count - 1) / 2)[place])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(ranks)[0, 1])


def tables() -> str:
    """Return all tables in Markdown."""
    runs = read(FILE)["runs"]
    found = {"Strengths, on the streams that they were chosen on": strengths(runs)}
    for title, streams in (("Chosen on", CHOOSING), ("Read once", READ_ONCE)):
        ours = setting(CHOSEN)
        found[f"{title}, strength {CHOSEN}"] = compared(runs, streams, ours)
        found[f"{title}, with rivals and strengths that were tried later"] = compared(
            runs, streams, ours, rivals=LATER
        )
    for name, optimiser in (("SGD", "sgd-0.1"), ("SGD with momentum", "momentum-0.02")):
        ours = setting(CHOSEN, ",form=proximal")
        found[f"{name}, proximal"] = compared(runs, SGD, ours, optimiser, OF_SGD)
    found["Read again with five seeds, GFIPlugin() of this version"] = again(runs)
    found["EfficientNet-Lite0 from ImageNet's weights, cifar-pretrained"] = pretrained(runs)
    found["Images that a measurement reads"] = measured(runs)
    found["Split MNIST, one head, with replay"] = replayed(runs)
    found["Predicted movement and forgetting of a task"] = movement(runs)
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in found.items()) + "\n"


if __name__ == "__main__":
    FILE.with_suffix(".md").write_text(tables(), encoding="utf-8")
    draw(read(FILE)["runs"], FILE.with_name("default.png"))
