"""GFIPlugin: Generalized Fisher Information where EWCPlugin stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.core import BasePlugin, SupervisedPlugin
from avalanche.models import MultiTaskModule
from avalanche.models.utils import avalanche_forward
from avalanche.training.plugins.evaluation import EvaluationPlugin, default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from avalanche_cetl.information.fisher import evaluation_mode, fisher_information
from avalanche_cetl.information.generalized import (
    Quantile,
    dwa_penalty,
    generalized_fisher,
    normalize_importance,
    shared_weights,
)
from avalanche_cetl.information.likelihood import negative_log_likelihood, sample_targets
from avalanche_cetl.information.relative import relative_fisher
from avalanche_cetl.training.settings import GFISettings

Weights = dict[str, Tensor]


class GFIPlugin(SupervisedPlugin):
    """Hold what old experiences need, and only where the new one needs the same (eqs. 9 to 11).

    Lives as EWCPlugin does and takes its first four arguments. At the end of an experience it
    measures the Fisher information of its weights, per sample. At the start of the next it
    asks, on the new experience's own images and at the weights as they are, how much the two
    tasks' Fisher values know of each other: those of the old task (labels drawn from the model
    as it was) and those of the new one (its labels). The relative Fisher information gates the
    stored importance weight by weight, and training pays
    ``sum_e sum_i dwa_lambda / 2 GFI_ei (theta_i - theta*_ei)^2``. No old data is kept.

    Without the gate (``threshold=0, probability=1``) this is EWC with an exact Fisher
    information: Avalanche's EWCPlugin squares gradients of mini-batch means instead, and has
    no factor 1/2 in its penalty.

    For classification: networks that give logits. Parameters that do not require gradients
    are neither measured nor held. Parameters that grow between experiences (heads) keep the
    importance of their old part; new ones are free.

    :param dwa_lambda: strength of the penalty, lambda of eq. 11, >= 0. With ``normalize`` it
        counts against importances of mean 1.
    :param mode: ``"separate"``: one importance and anchor per old experience; ``"online"``:
        one for all, old ones fading by ``decay_factor``.
    :param decay_factor: for ``"online"`` alone, and needed there.
    :param keep_importance_data: keep past importances and anchors in ``"online"`` mode too.
    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``.
    :param probability: p of eq. 10, in [0, 1].
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"`` or ``"histogram"``.
    :param fisher: labels of the stored Fisher information: ``"sampled"`` from the model, or
        ``"empirical"``, the data's, as EWC does.
    :param samples: images that each measurement reads, drawn from the experience (all of a
        smaller one), without training augmentation, >= 2.
    :param normalize: rescale each importance to mean 1 over its non-zero entries.
    :param seed: of the drawn images, labels and gates. The draws are the plugin's own and the
        same in every process of a distributed run (torch.distributed, gloo or nccl); each then
        measures its share of the images, and the sums over samples are all-reduced.
    :ivar importances: per experience, Fisher information by parameter name.
    :ivar saved_params: per experience, the weights theta* it was measured at.
    :ivar gated: per old experience, GFI as the current experience holds it.
    :ivar shared: per old experience, by parameter the share in [0, 1] of weights with RF >= u.
    :raises ValueError: for arguments out of range.
    """

    supports_distributed = True

    def __init__(
        self,
        dwa_lambda: float,
        mode: str = "separate",
        decay_factor: float | None = None,
        keep_importance_data: bool = False,
        *,
        threshold: float | Quantile = 0.5,
        probability: float = 0.9,
        estimator: str = "gaussian",
        fisher: str = "sampled",
        samples: int = 256,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if mode not in ("separate", "online"):
            raise ValueError(f"mode={mode!r} is not known. Allowed: 'separate', 'online'.")
        if (mode == "online") != (decay_factor is not None):
            raise ValueError(
                f"decay_factor={decay_factor} with mode={mode!r}: give decay_factor in 'online' "
                "mode, and only there."
            )
        if not dwa_lambda >= 0:
            raise ValueError(f"dwa_lambda={dwa_lambda} has to be >= 0.")
        self.dwa_lambda = float(dwa_lambda)
        self.mode = mode
        self.decay_factor = decay_factor
        self.keep_importance_data = keep_importance_data or mode == "separate"
        self.settings = GFISettings(
            threshold=threshold,
            probability=probability,
            estimator=estimator,
            fisher=fisher,
            samples=samples,
            normalize=normalize,
            seed=seed,
        )
        self.importances: dict[int, Weights] = {}
        self.saved_params: dict[int, Weights] = {}
        self.gated: dict[int, Weights] = {}
        self.shared: dict[int, dict[str, float]] = {}
        self._generator = torch.Generator().manual_seed(seed)
        self._tasks: dict[int, int] = {}
        self._drawn: tuple[list[int], dict[int | None, Tensor]] | None = None

    # ------------------------------------------------------------------ callbacks

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw the old task's labels for new images, while the model is as it was."""
        self._drawn = None
        if not self._old(strategy) or not self._gates:
            return
        images, _, _, rows = self._sample(strategy)
        drawn = {
            task: self._draw(_bare(strategy.model), images, task)
            for task in self._old_tasks(strategy)
        }
        self._drawn = rows, drawn

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Gate the stored importances by what the old tasks and the new one share."""
        self.gated, self.shared = {}, {}
        params = _trainable(_bare(strategy.model))
        relative = self._relative(strategy, params) if self._drawn is not None else {}
        self._drawn = None
        for experience in self._old(strategy):
            stored = self.importances[experience]
            held = {name: _grown(v, params[name]) for name, v in stored.items() if name in params}
            if relative:
                rf = relative[self._task_key(strategy, experience)]
                rf = {name: rf[name] for name in held}
                held = generalized_fisher(
                    held,
                    rf,
                    threshold=self.settings.threshold,
                    probability=self.settings.probability,
                    generator=self._generator,
                )
                masks = shared_weights(rf, self.settings.threshold)
                self.shared[experience] = {n: float(m.float().mean()) for n, m in masks.items()}
            self.gated[experience] = normalize_importance(held) if self.settings.normalize else held
            anchors = self.saved_params[experience]
            self.saved_params[experience] = {
                name: _grown(v, params[name]) if name in params else v
                for name, v in anchors.items()
            }

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss."""
        if not self.gated or self.dwa_lambda == 0:
            return
        params = dict(_bare(strategy.model).named_parameters())
        for experience, importance in self.gated.items():
            anchors = self.saved_params[experience]
            strategy.loss += dwa_penalty(params, anchors, importance, self.dwa_lambda)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the Fisher information of the experience that ends."""
        now = strategy.clock.train_exp_counter
        params = _trainable(_bare(strategy.model))
        images, labels, task, _ = self._sample(strategy)
        view = _view(_bare(strategy.model), (task,))
        nll = negative_log_likelihood("categorical")
        if self.settings.fisher == "sampled":
            labels = self._draw(_bare(strategy.model), images, task)
        else:
            labels = self._known(_bare(strategy.model), images, labels, task)
        own, group = _share(len(images))
        fisher = fisher_information(
            view.module, images[own], lambda out, y: nll(view.pick(out, 0), y),
            view.rename(params), targets=labels[own], process_group=group,
        )  # fmt: skip
        self.importances[now] = self._merged(view.restore(fisher), now)
        anchors = {name: p.detach().clone() for name, p in params.items()}
        if self.mode == "online":
            anchors = self.saved_params.get(now - 1, {}) | anchors
        self.saved_params[now] = anchors
        self._tasks[now] = task
        if now > 0 and not self.keep_importance_data:
            self.importances.pop(now - 1, None)
            self.saved_params.pop(now - 1, None)
        self.gated = {}

    # ------------------------------------------------------------------ pieces

    @property
    def _gates(self) -> bool:
        s = self.settings
        return not (s.probability == 1 and s.threshold == 0)

    def _old(self, strategy: Any) -> list[int]:
        """Experiences whose importance is held now."""
        now = strategy.clock.train_exp_counter
        known = [e for e in self.importances if e < now]
        return known if self.mode == "separate" else known[-1:]

    def _task_key(self, strategy: Any, experience: int) -> int | None:
        return self._tasks[experience] if _multi_task(_bare(strategy.model)) else None

    def _old_tasks(self, strategy: Any) -> list[int | None]:
        return list(dict.fromkeys(self._task_key(strategy, e) for e in self._old(strategy)))

    def _merged(self, fisher: Weights, now: int) -> Weights:
        if self.mode == "separate" or now - 1 not in self.importances:
            return fisher
        assert self.decay_factor is not None
        old = self.importances[now - 1]
        merged = {
            name: value + self.decay_factor * _grown(old[name], value) if name in old else value
            for name, value in fisher.items()
        }
        # Frozen for now, or not in the model any more: what was there fades, but stays.
        return {n: self.decay_factor * v for n, v in old.items() if n not in fisher} | merged

    def _draw(self, model: nn.Module, images: Tensor, task: int | None) -> Tensor:
        """Draw a label for each image from the model's own output."""
        with torch.no_grad(), evaluation_mode(model):
            return sample_targets(_forward(model, images, task), "categorical", self._generator)

    def _known(self, model: nn.Module, images: Tensor, labels: Tensor, task: int) -> Tensor:
        """Labels of the data, the unknown ones (-1) drawn from the model."""
        if bool((labels >= 0).all()):
            return labels
        return torch.where(labels >= 0, labels, self._draw(model, images, task))

    def _relative(self, strategy: Any, params: Weights) -> dict[int | None, Weights]:
        """Relative Fisher information of every old task with the new one."""
        assert self._drawn is not None
        rows, drawn = self._drawn
        images, labels, task, _ = self._sample(strategy, rows)
        labels = self._known(_bare(strategy.model), images, labels, task)
        nll = negative_log_likelihood("categorical")
        own, group = _share(len(images))
        result: dict[int | None, Weights] = {}
        for old, targets in drawn.items():
            view = _view(_bare(strategy.model), (task if old is None else old, task))
            found = relative_fisher(
                view.module,
                images[own],
                (
                    lambda out, y, view=view: nll(view.pick(out, 0), y),
                    lambda out, y, view=view: nll(view.pick(out, 1), y),
                ),
                view.rename(params),
                targets=(targets[own], labels[own]),
                estimator=self.settings.estimator,
                process_group=group,
            )
            result[old] = view.restore(found)
        return result

    def _sample(
        self, strategy: Any, rows: list[int] | None = None
    ) -> tuple[Tensor, Tensor, int, list[int]]:
        """Draw images of the experience: themselves, their labels, their task, their rows."""
        dataset = strategy.experience.dataset
        dataset = dataset.eval() if hasattr(dataset, "eval") else dataset
        if rows is None:
            order = torch.randperm(len(dataset), generator=self._generator)
            rows = sorted(order[: self.settings.samples].tolist())
        batch = dataset.collate_fn([dataset[i] for i in rows])
        images, labels = batch[0].to(strategy.device), batch[1].to(strategy.device)
        tasks = torch.as_tensor(batch[-1]).unique().tolist()
        if len(tasks) > 1 and _multi_task(_bare(strategy.model)):
            raise ValueError(
                f"an experience mixes the task labels {tasks}: GFIPlugin measures one head at a "
                "time; give each task an experience of its own."
            )
        return images, labels, int(tasks[0]), rows


class _View:
    """A model under its own parameter names, or one whose heads are chosen by task."""

    def __init__(self, module: nn.Module, prefix: str):
        self.module, self.prefix = module, prefix

    def rename(self, params: Weights) -> Weights:
        return {self.prefix + name: p for name, p in params.items()}

    def restore(self, values: Weights) -> Weights:
        return {name.removeprefix(self.prefix): value for name, value in values.items()}

    def pick(self, outputs: Any, index: int) -> Tensor:
        return outputs[index] if self.prefix else outputs


class _Heads(nn.Module):
    def __init__(self, model: nn.Module, tasks: Sequence[int]):
        super().__init__()
        self.model, self.tasks = model, tuple(tasks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = {task: _forward(self.model, x, task) for task in dict.fromkeys(self.tasks)}
        return tuple(outputs[task] for task in self.tasks)


def _view(model: nn.Module, tasks: Sequence[int]) -> _View:
    return _View(_Heads(model, tasks), "model.") if _multi_task(model) else _View(model, "")


def _multi_task(model: nn.Module) -> bool:
    return isinstance(model, MultiTaskModule)


def _bare(model: nn.Module) -> nn.Module:
    """The model itself, under its own parameter names, where it is wrapped for training."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _share(rows: int) -> tuple[slice, distributed.ProcessGroup | None]:
    """Which of the drawn rows this process measures, and those it does it with."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return slice(None), None
    size = distributed.get_world_size()
    if size == 1 or rows < size:
        return slice(None), None
    return slice(distributed.get_rank(), None, size), distributed.group.WORLD


def _forward(model: nn.Module, images: Tensor, task: int | None) -> Tensor:
    if task is None or not _multi_task(model):
        return model(images)
    labels = torch.full((len(images),), task, device=images.device)
    return avalanche_forward(model, images, labels)


def _trainable(model: nn.Module) -> Weights:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _grown(value: Tensor, like: Tensor) -> Tensor:
    """Fit a stored tensor to a parameter that has grown: zeros where it has no entry."""
    if value.shape == like.shape:
        return value
    if value.dim() != like.dim() or any(
        a > b for a, b in zip(value.shape, like.shape, strict=True)
    ):
        raise ValueError(
            f"a parameter of shape {tuple(value.shape)} has become {tuple(like.shape)}: parameters "
            "may grow between experiences, but not shrink or change their dimensions."
        )
    grown = torch.zeros_like(like, requires_grad=False)
    grown[tuple(slice(0, size) for size in value.shape)] = value
    return grown


class GFI(SupervisedTemplate):
    """Generalized Fisher Information as a strategy: :class:`GFIPlugin` with Naive training.

    :param dwa_lambda: see :class:`GFIPlugin`, as ``mode``, ``decay_factor`` and
        ``keep_importance_data``.
    :param gfi: further keyword arguments of :class:`GFIPlugin`.

    The other arguments are those of every Avalanche strategy.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        dwa_lambda: float,
        mode: str = "separate",
        decay_factor: float | None = None,
        keep_importance_data: bool = False,
        gfi: dict[str, Any] | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[BasePlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] = default_evaluator,
        eval_every: int = -1,
        **base_kwargs: Any,
    ):
        plugin = GFIPlugin(dwa_lambda, mode, decay_factor, keep_importance_data, **(gfi or {}))
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss() if criterion is None else criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*(plugins or ()), plugin],
            evaluator=evaluator,
            eval_every=eval_every,
            **base_kwargs,
        )
