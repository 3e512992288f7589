"""save_checkpoint and load_checkpoint: stop anywhere, go on as if nothing had happened."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avalanche.training.templates import SupervisedTemplate

from avalanche_cetl.checkpoints.errors import CheckpointError
from avalanche_cetl.checkpoints.file import read_checkpoint_file, write_checkpoint_file
from avalanche_cetl.checkpoints.networks import Shape
from avalanche_cetl.checkpoints.plain import NotPlainError, Packer, Unpacker
from avalanche_cetl.checkpoints.state import capture, restore
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.training.strategy import CETLStrategy

SUFFIX = ".safetensors"
NUMBERED = re.compile(r"checkpoint-(\d+)\.safetensors")


@dataclass(frozen=True)
class Progress:
    """How far training had come.

    :ivar experiences: finished experiences.
    :ivar rounds: finished rounds (epochs) of the experience in training; 0 between two.
    :ivar calls: finished calls of ``train()`` (of :class:`CETLStrategy`).
    """

    experiences: int = 0
    rounds: int = 0
    calls: int = 0


def save_checkpoint(
    strategy: SupervisedTemplate, path: str | os.PathLike[str], *, ignore: Sequence[str] = ()
) -> Progress:
    """Write all that training has changed into one file, in one step.

    The file is there whole or not at all; what was there before stays until then. It holds T1, T2
    and the adapters, the optimisers of all stages, schedulers, GFI with its anchors, plugins,
    metrics so far, the clock, all random states, and S's fingerprint, not S. It is a safetensors
    file with JSON in it: no pickle, nothing that loading would execute.

    :param strategy: a :class:`CETLStrategy` between two rounds (``after_round`` of a
        :class:`CETLPlugin`; :class:`CheckpointPlugin` does it) or outside of ``train()``; any
        other supervised strategy outside of ``train()``.
    :param path: of the file; missing folders are made, and a leading ``~`` is the home folder.
    :param ignore: class names of plugins whose state need not be kept; or of the strategy, where
        it has attributes of its own that need not.

    With several processes all call it, and the first one writes.

    :return: how far training has come.
    :raises CheckpointError: within a round, when a plugin or a metric keeps what cannot be
        written, or when the file cannot be written.
    """
    progress = _progress(strategy)
    packer = Packer()
    try:
        state = packer.pack(
            {
                "progress": asdict(progress),
                "call": _call_state(strategy),
                "training": capture(strategy, ignore),
            }
        )
    except NotPlainError as problem:
        raise CheckpointError(f"a {problem} cannot be kept in a checkpoint.") from problem
    if not isinstance(strategy, CETLStrategy) or strategy.engine.parallel.first:
        write_checkpoint_file(Path(path).expanduser(), packer.tensors, state)
    return progress


def load_checkpoint(
    strategy: SupervisedTemplate,
    path: str | os.PathLike[str],
    *,
    ignore: Sequence[str] = (),
    experiences: Iterable[Any] | None = None,
) -> Progress:
    """Put a checkpoint into a new strategy; ``train()`` then goes on where the saved one stood.

    Make the strategy as before, load, and call ``train()`` as before: rounds and experiences
    that were finished within that call are passed over. A script with a loop over experiences
    starts it at ``experiences`` of the result.

    :param strategy: made with the same network, optimiser, settings and plugins. Learning rates
        are the checkpoint's; ``train_epochs`` is the strategy's own.
    :param path: of a file, or a folder of :class:`CheckpointPlugin`: its newest checkpoint that
        is whole. A leading ``~`` is the home folder.
    :param ignore: class names of plugins whose state is left alone.
    :param experiences: the training stream of the run. Needed where a plugin keeps rows of it
        that pass through random transforms (a replay buffer with augmentation), whose places the
        checkpoint holds, and where the network grows in training by modules that are not
        Avalanche's classifiers. An error says so.
    :return: how far training had come.
    :raises CheckpointError: when the file is missing, damaged, of another version, or of
        another strategy, or ``experiences`` are needed; the strategy is then as it was.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _newest(path)
    tensors, packed = read_checkpoint_file(path)
    document = Unpacker(tensors, strategy.device).unpack(packed)
    strategy.model.to(strategy.device)
    stream = None if experiences is None else list(experiences)
    shape = Shape(strategy.model)
    before = copy.deepcopy(capture(strategy, ignore, live=True))
    try:
        progress = Progress(**{name: int(n) for name, n in document["progress"].items()})
        call = document["call"]
        restore(strategy, document["training"], ignore, stream)
        if isinstance(strategy, CETLStrategy):
            strategy.resume.expect(
                finished=int(call["finished"]),
                calls=progress.calls,
                rounds=progress.rounds if call["inside"] else None,
                rows=[int(count) for count in call["rows"]],
                state=lambda: restore(
                    strategy,
                    Unpacker(tensors, strategy.device).unpack(packed)["training"],
                    ignore,
                    stream,
                ),
            )
    except CheckpointError:
        shape.go_back()
        restore(strategy, before, ignore)
        raise
    except Exception as problem:  # a file that is whole, but was not written by save_checkpoint
        shape.go_back()
        restore(strategy, before, ignore)
        raise CheckpointError(
            f"{path} does not hold what a checkpoint holds ({type(problem).__name__}: "
            f"{str(problem)[:200]})."
        ) from problem
    return progress


def checkpoints_in(folder: Path) -> list[Path]:
    """Return a folder's numbered checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _number(path))]
    return [path for _, path in sorted(found)]


def _number(path: Path) -> re.Match[str] | None:
    return NUMBERED.fullmatch(path.name)


def _newest(folder: Path) -> Path:
    """Return the newest checkpoint of a folder that is whole."""
    found = checkpoints_in(folder)
    if not found:
        raise CheckpointError(f"there is no checkpoint in {folder}.")
    for path in reversed(found):
        try:
            read_checkpoint_file(path)
        except CheckpointError as problem:
            warn_caller(f"{problem} An older one is tried.", RuntimeWarning)
            continue
        return path
    raise CheckpointError(f"none of the {len(found)} checkpoints in {folder} is whole.")


def _progress(strategy: SupervisedTemplate) -> Progress:
    clock = strategy.clock
    if not isinstance(strategy, CETLStrategy):
        if strategy.experience is not None:
            raise CheckpointError(
                f"a {type(strategy).__name__} can be saved outside of train() and eval() only."
            )
        return Progress(experiences=clock.train_exp_counter)
    resume = strategy.resume
    if not resume.whole:
        raise CheckpointError(
            "within a round there is no whole state to save: save between two rounds (after_round "
            "of a CETLPlugin, or CheckpointPlugin), or outside of train()."
        )
    rounds = clock.train_exp_epochs if resume.inside else 0
    return Progress(clock.train_exp_counter, rounds, resume.calls)


def _call_state(strategy: SupervisedTemplate) -> dict[str, Any]:
    if not isinstance(strategy, CETLStrategy):
        return {}
    resume = strategy.resume
    return {"inside": resume.inside, "finished": resume.finished, "rows": list(resume.rows)}
