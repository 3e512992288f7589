"""save_checkpoint and load_checkpoint: stop anywhere, go on as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from avalanche.benchmarks import CLExperience
from avalanche.logging import BaseLogger
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avalanche_cetl.allocation.parameters import named_parameters
from avalanche_cetl.checkpoints import parts
from avalanche_cetl.checkpoints.adapters import differences, refuse, settings_of, without_settings
from avalanche_cetl.checkpoints.codec import (
    CheckpointError,
    Decoder,
    encode,
    newest_checkpoint,
    read_checkpoint_file,
    write_checkpoint_file,
)
from avalanche_cetl.checkpoints.objects import Collector, Restorer
from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.common.state import Snapshot
from avalanche_cetl.common.version import __version__
from avalanche_cetl.encoders.base import Encoder
from avalanche_cetl.encoders.origin import Origin
from avalanche_cetl.training.strategy import CETLStrategy

#: What loading does not change.
_CONSTANT = (Encoder, CLExperience, Dataset, DataLoader, BaseLogger)
#: Attributes of every strategy; they are made anew, or kept under names of their own.
_OF_EVERY_STRATEGY = frozenset(
    ("_criterion", "_distributed_check", "_eval_streams", "_experiences", "_stop_training",
     "adapted_dataset", "clock", "current_eval_stream", "dataloader", "device", "eval_every",
     "eval_mb_size", "evaluator", "experience", "is_training", "loss", "mb_output", "mbatch",
     "model", "optimized_param_id", "optimizer", "plugins", "retain_graph", "train_epochs",
     "train_mb_size")
)  # fmt: skip


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
    metrics so far, the clock, all random states, and what S is known by, not S. It is a safetensors
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
    progress, call = _progress(strategy), {}
    if isinstance(strategy, CETLStrategy):
        resume = strategy.resume
        call = {"inside": resume.inside, "finished": resume.finished, "rows": list(resume.rows)}
    tensors: dict[str, Tensor] = {}
    training = _collected(strategy, ignore)
    document = {"progress": asdict(progress), "call": call, "training": training}
    state = encode(document, tensors)
    if not isinstance(strategy, CETLStrategy) or strategy.engine.parallel.first:
        write_checkpoint_file(Path(path).expanduser(), tensors, state)
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
        that pass through random transforms (a replay buffer with augmentation), whose indices the
        checkpoint holds, and where the network grows in training by modules that are not
        Avalanche's classifiers. An error says so.
    :return: how far training had come.
    :raises CheckpointError: when the file is missing, damaged, of another version, or of
        another strategy, or ``experiences`` are needed; the strategy is then as it was.
    """
    path = Path(path).expanduser()
    path = newest_checkpoint(path) if path.is_dir() else path
    tensors, encoded = read_checkpoint_file(path)
    document = Decoder(tensors, strategy.device).decode(encoded)
    stream = None if experiences is None else list(experiences)
    strategy.model.to(strategy.device)
    before, random_before = Snapshot(strategy, _CONSTANT), parts.random_states()

    def restore_again() -> None:
        training = Decoder(tensors, strategy.device).decode(encoded)["training"]
        _restore(strategy, training, ignore, stream)

    try:
        progress = Progress(**{name: int(n) for name, n in document["progress"].items()})
        call = document["call"]
        _restore(strategy, document["training"], ignore, stream)
        if isinstance(strategy, CETLStrategy):
            strategy.resume.expect(
                finished=int(call["finished"]),
                calls=progress.calls,
                rounds=progress.rounds if call["inside"] else None,
                rows=[int(count) for count in call["rows"]],
                state=restore_again,
            )
    except Exception as problem:
        before.put_back()
        parts.load_random_states(random_before)
        if isinstance(problem, CheckpointError):
            raise
        # A file that is whole, but was not written by save_checkpoint.
        raise CheckpointError(
            f"{path} does not hold what a checkpoint holds ({type(problem).__name__}: "
            f"{str(problem)[:200]})."
        ) from problem
    return progress


def check_keepable(strategy: SupervisedTemplate, ignore: Sequence[str] = ()) -> None:
    """Raise an error where plugins or metrics have, or will have, state that cannot be kept.

    :param strategy: whose plugins and metrics they are.
    :param ignore: see :func:`save_checkpoint`.
    :raises CheckpointError: which one, and why.
    """
    _collected_objects(strategy, ignore, within=True)


def _progress(strategy: SupervisedTemplate) -> Progress:
    done = strategy.clock.train_exp_counter
    if not isinstance(strategy, CETLStrategy):
        if strategy.experience is not None:
            raise CheckpointError(
                f"a {type(strategy).__name__} can be saved outside of train() and eval() only."
            )
        return Progress(done)
    if not strategy.resume.whole:
        raise CheckpointError(
            "within a round there is no whole state to save: save between two rounds (after_round "
            "of a CETLPlugin, or CheckpointPlugin), or outside of train()."
        )
    rounds = strategy.clock.train_exp_epochs if strategy.resume.inside else 0
    return Progress(done, rounds, strategy.resume.calls)


# ------------------------------------------------------------------ the strategy


def _collected(strategy: SupervisedTemplate, ignore: Sequence[str]) -> dict[str, Any]:
    """Return everything that training changes, as plain data."""
    network, cetl, within = parts.network_state(strategy.model), None, False
    if isinstance(strategy, CETLStrategy):
        within = strategy.resume.inside
        stages, own = strategy.optimizers.items(), strategy.parts().items()
        cetl = {
            "settings": settings_of(strategy),
            "variant": strategy.variant.described,
            "source": _origin_of_source(strategy.model),
            "stages": {
                label: stage.optimizer and parts.optimizer_state(stage.optimizer, strategy.model)
                for label, stage in stages
            },
            "parts": {name: part.state_dict() for name, part in own},
        }
    return {
        "strategy": type(strategy).__qualname__,
        "written_by": {"avalanche-cetl": __version__, "torch": torch.__version__},
        "model": network["tensors"],
        "network": {name: network[name] for name in ("frozen", "dynamic")},
        "optimizer": parts.optimizer_state(strategy.optimizer, strategy.model),
        **_collected_objects(strategy, ignore, within),
        "keepers": [
            {name: getattr(plugin, name) for name in plugin.checkpoint_counters}
            for plugin in _plugins(strategy, saving=True)
        ],
        "stop": strategy._stop_training,
        "clock": dict(vars(strategy.clock)),
        "random": _processes(strategy).meet(parts.random_states()),
        "cetl": cetl,
    }


def _collected_objects(
    strategy: SupervisedTemplate, ignore: Sequence[str], within: bool
) -> dict[str, Any]:
    """Return the states of plugins, metrics, and what the strategy has of its own.

    :param within: whether an experience is in training.
    """
    collector = Collector(strategy.model, [strategy, strategy.optimizer])
    plugins = []
    for plugin in _plugins(strategy):
        name, state = type(plugin).__name__, None
        if name not in ignore:
            refuse(plugin, within)
            state = without_settings(plugin, collector.collect(plugin, name))
        settings = settings_of(plugin)
        plugins.append({"type": type(plugin).__qualname__, "state": state, "settings": settings})
    own, name = None, type(strategy).__name__
    if not isinstance(strategy, CETLStrategy) and name not in ignore:
        left = {n: value for n, value in vars(strategy).items() if n not in _OF_EVERY_STRATEGY}
        own = without_settings(strategy, collector.collect_object(strategy, name, left))
    return {
        "plugins": plugins,
        "own": own,
        "own_settings": None if own is None else settings_of(strategy),
        "evaluator": parts.evaluator_state(strategy.evaluator, collector),
    }


def _restore(
    strategy: SupervisedTemplate,
    state: Mapping[str, Any],
    ignore: Sequence[str],
    experiences: Sequence[Any] | None,
) -> None:
    """Restore what :func:`_collected` returned of another strategy."""
    _check(strategy, state, ignore)
    model = pristine = strategy.model
    if parts.mismatches(model, state["model"]):
        pristine = copied(model)
        parts.grow(model, state["model"], experiences or ())
        parts.check_tensors(model, state["model"])
    parts.load_network_state(model, {"tensors": state["model"], **state.get("network", {})})
    strategy.make_optimizer()  # the first call of it would throw the moments away
    if isinstance(strategy, CETLStrategy):
        for label, own in strategy.optimizers.items():
            assert own.optimizer is not None
            own.optimizer.state.clear()
            if (kept := state["cetl"]["stages"][label]) is not None:
                parts.load_optimizer_state(own.optimizer, kept, model)
        for name, part in strategy.parts().items():
            part.load_state_dict(state["cetl"]["parts"][name])
        learning = named_parameters(model)
        for importance in strategy.importance.values():
            for name in importance.misfits(learning):
                raise CheckpointError(f"the importance of {name} has another shape than {name}.")
        strategy.allocation.to(strategy.device)
    parts.load_optimizer_state(strategy.optimizer, state["optimizer"], model)
    restorer = Restorer(pristine, experiences)
    for thing, kept, _ in _things(strategy, state, ignore):
        restorer.restore(thing, without_settings(thing, kept), type(thing).__name__)
    for plugin, counters in zip(_plugins(strategy, saving=True), state["keepers"], strict=False):
        for name in plugin.checkpoint_counters:
            kind = int if isinstance(getattr(plugin, name), int) else float
            setattr(plugin, name, None if counters[name] is None else kind(counters[name]))
    parts.load_evaluator_state(strategy.evaluator, state["evaluator"], restorer)
    strategy._stop_training = bool(state["stop"])
    for counter in vars(strategy.clock):
        setattr(strategy.clock, counter, int(state["clock"][counter]))
    rank = _processes(strategy).rank
    if rank < len(state["random"]):  # a process that the saved run did not have draws its own
        parts.load_random_states(state["random"][rank])


def _things(
    strategy: SupervisedTemplate, state: Mapping[str, Any], ignore: Sequence[str]
) -> Iterator[tuple[Any, Any, Any]]:
    """Yield plugins, and a stock strategy, with their states and settings in the checkpoint."""
    for plugin, kept in zip(_plugins(strategy), state["plugins"], strict=True):
        if type(plugin).__name__ not in ignore:
            yield plugin, kept["state"], kept.get("settings")
    if state.get("own") is not None and type(strategy).__name__ not in ignore:
        yield strategy, state["own"], state.get("own_settings")


def _plugins(strategy: SupervisedTemplate, saving: bool = False) -> list[Any]:
    """Return the plugins that have state, or those that save: a run may go on with others."""
    own = (strategy.evaluator, strategy.clock)
    return [
        plugin
        for plugin in strategy.plugins
        if not any(plugin is one for one in own)
        and hasattr(plugin, "checkpoint_counters") is saving
    ]


def _processes(strategy: SupervisedTemplate) -> Processes:
    cetl = isinstance(strategy, CETLStrategy)
    return strategy.engine.parallel.processes if cetl else Processes(None)


# ------------------------------------------------------------------ checks


def _check(strategy: SupervisedTemplate, state: Mapping[str, Any], ignore: Sequence[str]) -> None:
    """Raise an error where the checkpoint is of another strategy, before anything is changed."""
    kind = type(strategy).__qualname__
    if state["strategy"] != kind:
        raise CheckpointError(
            f"the checkpoint is of a {str(state['strategy'])[:60]}, the strategy is a {kind}."
        )
    mine = [type(plugin).__qualname__ for plugin in _plugins(strategy)]
    its = [kept["type"] for kept in state["plugins"]]
    if mine != its:
        raise CheckpointError(f"the strategy has the plugins {mine}, in the checkpoint {its}.")
    if not parts.may_grow_into(strategy.model, state["model"]):
        parts.check_tensors(strategy.model, state["model"])
    other: list[str] = []
    if isinstance(strategy, CETLStrategy):
        if not _is_source(strategy.model, state["cetl"]["source"]):
            raise CheckpointError(
                "the source network is not the one of the checkpoint: weights, layers or settings "
                "differ."
            )
        other += differences(strategy, state["cetl"]["settings"])
    for thing, kept, settings in _things(strategy, state, ignore):
        name = type(thing).__name__
        other += [f"{name}.{one}" for one in differences(thing, settings, kept)]
    if other:
        raise CheckpointError(
            f"the strategy has other settings than the checkpoint: {'; '.join(other)}. Make it "
            "with the same ones, or assign them before you load (a plugin of yours that changes "
            "one in training names it in varying); learning rates and train_epochs may differ."
        )
    if isinstance(strategy, CETLStrategy) and "variant" in state["cetl"]:  # not so in 0.2
        now, then = strategy.variant.described, list(state["cetl"]["variant"])
        if now != then:
            raise CheckpointError(
                f"the variant {strategy.variant.name!r} has the stages [{', '.join(now)}], in the "
                f"checkpoint [{', '.join(map(str, then))}]: make the strategy with the same ones."
            )


#: By S: it is frozen, so it is asked once.
_origins: WeakKeyDictionary[nn.Module, dict[str, Any]] = WeakKeyDictionary()


def _origin_of_source(model: Any) -> dict[str, Any] | None:
    """Return what S is known by, as plain data; None without S."""
    if model.source is None:
        return None
    if model.source not in _origins:
        origin = Origin.of(model.source, model.input_shape, torch.float32)
        _origins[model.source] = origin.state_dict()
    return _origins[model.source]


def _is_source(model: Any, kept: Any) -> bool:
    """Return whether S is the one of a checkpoint; there may be none on either side."""
    if kept is None or model.source is None:
        return kept is model.source
    return Origin.from_state(kept).is_of(model.source)
