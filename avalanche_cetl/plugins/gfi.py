"""GFIPlugin: Generalized Fisher Information where EWCPlugin stands.

How it pays: by default in a proximal step after the optimiser's (:class:`Pull`), once an iteration,
at the learning rate of each weight's parameter group. The weights stay finite at every strength,
where the penalty in the loss diverges as soon as learning rate times ``dwa_lambda`` times
importance is more than 2. With SGD the two agree to first order in the learning rate; with adaptive
optimisers the pull is not divided by their moments, so that the best strength is another one than
in the loss. Parameters that the optimiser does not hold stay; those without a gradient in a step
are pulled, as they are by a penalty in the loss. A step that a gradient scaler skips is still
followed by its pull.

Without the gate (``threshold=0, probability=1``) this is EWC with an exact Fisher information:
Avalanche's EWCPlugin squares gradients of mini-batch means instead, and has no factor 1/2 in its
penalty.

Parameters that require no gradient when an experience ends are not measured; those measured before
are held whenever they train. Parameters that grow between experiences (heads) keep the importance
of their old part; new ones are free. Networks may be wrapped (``torch.compile``, DataParallel,
DistributedDataParallel) between experiences. In networks with heads by task each image is read
through the head of its own task; where an old experience had several, new images take its heads in
turn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.measure import Measurement, Task, gate
from avalanche_cetl.allocation.parameters import bare, grown, trainable
from avalanche_cetl.allocation.proximal import Pull, Weights, check_learning_rates
from avalanche_cetl.allocation.readout import Output, Readout, View
from avalanche_cetl.allocation.sample import Sample, in_turn, read_sample
from avalanche_cetl.allocation.settings import GFISettings
from avalanche_cetl.common.arguments import renamed
from avalanche_cetl.common.errors import NonFiniteLossError
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.generalized import (
    Quantile,
    dwa_penalty,
)

PENALTIES = ("proximal", "loss")


class GFIPlugin(SupervisedPlugin):
    """Hold what old experiences need, and only where the new one needs the same (eqs. 9 to 11).

    Lives as EWCPlugin does and takes its first four arguments. At the end of an experience it
    measures the Fisher information of its weights, per sample. At the start of the next it
    asks, on the new experience's own images and at the weights as they are, how much the two
    tasks' Fisher values tell about each other: those of the old task (labels drawn from the model
    as it was) and those of the new one (its labels; unknown ones, below 0, are drawn). The
    relative Fisher information gates the stored importance weight by weight, and training pays
    ``sum_e sum_i dwa_lambda / 2 GFI_ei (theta_i - theta*_ei)^2``. No old data is kept.

    How it pays, which parameters it holds, and what it is without its gate, is in the docstring of
    :mod:`avalanche_cetl.plugins.gfi`.

    :param dwa_lambda: strength of the penalty, lambda of eq. 11, >= 0. With ``normalize`` it
        counts against importances of mean 1.
    :param mode: ``"separate"``: one importance and anchor per old experience; ``"online"``:
        one for all, old ones fading by ``decay_factor``.
    :param decay_factor: for ``"online"`` alone, and needed there.
    :param keep_importance_data: keep past importances and anchors in ``"online"`` mode too.
    :param penalty: ``"proximal"``: a step of its own after the optimiser's, which needs learning
        rates in the optimiser's groups; ``"loss"``: the sum above, added to the loss as printed,
        with a check that it is finite.
    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``.
    :param probability: p of eq. 10, in [0, 1].
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"`` or ``"histogram"``.
    :param fisher: labels of the stored Fisher information: ``"sampled"`` from the model, or
        ``"empirical"``, the data's, as EWC does.
    :param likelihood: what the network's output is: ``"categorical"``: class logits ``(N, K)``;
        ``"bernoulli"``: one logit or several, each of yes or no, as binary cross entropy reads
        them; ``"gaussian"``: real values, as a squared error reads them.
    :param output: picks the tensor of logits out of the network's output: an index, a key or a
        callable. Default: the output is the tensor.
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
    :raises ValueError: for arguments out of range; before an experience trains, when the
        likelihood cannot read the network's output or the labels, or when a parameter group has
        no learning rate; and :class:`NonFiniteLossError` when a penalty in the loss or a
        measured importance is not finite.
    """

    supports_distributed = True

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        dwa_lambda: float,
        mode: str = "separate",
        decay_factor: float | None = None,
        keep_importance_data: bool = False,
        *,
        penalty: str = "proximal",
        threshold: float | Quantile = 0.5,
        probability: float = 0.9,
        estimator: str = "gaussian",
        fisher: str = "sampled",
        likelihood: str = "categorical",
        output: Output | None = None,
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
        if decay_factor is not None and not 0 <= decay_factor < math.inf:
            raise ValueError(f"decay_factor={decay_factor} has to be finite and >= 0.")
        if penalty not in PENALTIES:
            allowed = ", ".join(map(repr, PENALTIES))
            raise ValueError(f"penalty={penalty!r} is not known. Allowed: {allowed}.")
        if not dwa_lambda >= 0 or (math.isinf(dwa_lambda) and penalty == "loss"):
            raise ValueError(
                f"dwa_lambda={dwa_lambda} has to be >= 0, and finite with penalty='loss'."
            )
        self.dwa_lambda = float(dwa_lambda)
        self.mode = mode
        self.decay_factor = decay_factor
        self.keep_importance_data = keep_importance_data or mode == "separate"
        self.penalty = penalty
        self.readout = Readout(likelihood, output)
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
        self._pull = Pull()
        self._generator = torch.Generator().manual_seed(seed)
        self._tasks: dict[int, tuple[int, ...]] = {}
        self._drawn: tuple[Sample, dict[tuple[int, ...], Tensor]] | None = None

    # ------------------------------------------------------------------ callbacks

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw the old task's labels for new images, while the model is as it was.

        The images are kept until the gate is drawn: another plugin may put another data set in
        the experience meanwhile, whose rows would not be those that the labels were drawn for.
        """
        self._drawn = None
        if not self._old(strategy) or not self._gates:
            return
        model = bare(strategy.model)
        images, labels, tasks, _ = self._sample(strategy)
        drawn = {
            old: self.readout.draw(model, images, in_turn(old, tasks), self._generator)
            for old in self._old_tasks(strategy)
        }
        self._drawn = Sample(images, labels, tasks), drawn

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Gate the stored importances by what the old tasks and the new one share."""
        self._check(strategy)
        self.gated, self.shared, self._pull = {}, {}, Pull()
        # Those that are frozen now may be trained later in the experience.
        params = self._held(bare(strategy.model), strategy)
        relative = self._relative(strategy, params) if self._drawn is not None else {}
        self._drawn = None
        for experience in self._old(strategy):
            stored = self.importances[experience]
            held = {name: grown(v, params[name]) for name, v in stored.items() if name in params}
            rf = relative.get(self._tasks[experience])
            self.gated[experience], shared = gate(held, rf, self.settings, self._generator)
            if rf is not None:
                self.shared[experience] = shared
            anchors = self.saved_params[experience]
            self.saved_params[experience] = {
                name: grown(v, params[name]) if name in params else v for name, v in anchors.items()
            }
            if self.penalty == "proximal":
                self._pull.add(self.gated[experience], self.saved_params[experience])

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, where that is its form."""
        if self.penalty != "loss" or not self.gated or self.dwa_lambda == 0:
            return
        params = dict(bare(strategy.model).named_parameters())
        for experience, importance in self.gated.items():
            anchors = self.saved_params[experience]
            added = dwa_penalty(params, anchors, importance, self.dwa_lambda)
            if not torch.isfinite(added):
                raise self._diverged(f"the penalty of experience {experience}", strategy)
            strategy.loss += added

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the proximal step that follows the optimiser's."""
        self.hold_weights(strategy, strategy.optimizer)

    def hold_weights(self, strategy: Any, optimizer: Optimizer) -> None:
        """Take the proximal step at an optimiser's learning rates."""
        self._pull.step(dict(bare(strategy.model).named_parameters()), optimizer, self.dwa_lambda)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the Fisher information of the experience that ends."""
        now = strategy.clock.train_exp_counter
        model = bare(strategy.model)
        params = trainable(model)
        images, labels, tasks, _ = self._sample(strategy)
        if self.settings.fisher == "sampled":
            targets = self.readout.draw(model, images, tasks, self._generator)
        else:
            targets = self.readout.known(model, images, labels, tasks, self._generator)
        view = self.readout.view(model, tasks)
        measurement = self._measurement(view, images, params)
        fisher = view.restore(measurement.fisher(Task(*view.task(targets, tasks))))
        if not all(bool(value.isfinite().all()) for value in fisher.values()):
            raise self._diverged("the Fisher information", strategy)
        self.importances[now] = self._merged(fisher, now)
        anchors = {name: p.detach().clone() for name, p in params.items()}
        if self.mode == "online":
            anchors = self.saved_params.get(now - 1, {}) | anchors
        self.saved_params[now] = anchors
        self._tasks[now] = tuple(tasks.unique().tolist()) if is_multi_task_module(model) else ()
        if now > 0 and not self.keep_importance_data:
            self.importances.pop(now - 1, None)
            self.saved_params.pop(now - 1, None)
        self.gated, self._pull = {}, Pull()

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

    def _held(self, model: nn.Module, strategy: Any) -> Weights:
        """The network's parameters that an old experience has an importance of.

        :raises ValueError: when it has none of them any more.
        """
        named = dict(model.named_parameters())
        old = self._old(strategy)
        stored = {name for experience in old for name in self.importances[experience]}
        if stored and not stored & named.keys():
            raise ValueError(
                f"GFIPlugin holds {min(stored)!r} and others, but the network has none of them: "
                f"its parameters are {min(named)!r} and others. Give it the same network, under "
                "the same names, in every experience."
            )
        return {name: parameter for name, parameter in named.items() if name in stored}

    def _old_tasks(self, strategy: Any) -> list[tuple[int, ...]]:
        """The tasks whose heads an old experience has, each set of them once."""
        return list(dict.fromkeys(self._tasks[e] for e in self._old(strategy)))

    def _merged(self, fisher: Weights, now: int) -> Weights:
        if self.mode == "separate" or now - 1 not in self.importances:
            return fisher
        assert self.decay_factor is not None
        old = self.importances[now - 1]
        merged = {
            name: value + self.decay_factor * grown(old[name], value) if name in old else value
            for name, value in fisher.items()
        }
        # Frozen for now, or not in the model any more: what was there fades, but stays.
        return {n: self.decay_factor * v for n, v in old.items() if n not in fisher} | merged

    def _relative(self, strategy: Any, params: Weights) -> dict[tuple[int, ...], Weights]:
        """Relative Fisher information of every old task with the new one."""
        assert self._drawn is not None
        (images, labels, tasks, _), drawn = self._drawn
        model = bare(strategy.model)
        labels = self.readout.known(model, images, labels, tasks, self._generator)
        result: dict[tuple[int, ...], Weights] = {}
        for old, targets in drawn.items():
            old_tasks = in_turn(old, tasks)
            view = self.readout.view(model, old_tasks, tasks)
            both = Task(*view.task(targets, old_tasks)), Task(*view.task(labels, tasks))
            _, found = self._measurement(view, images, params).relative(*both)
            result[old] = view.restore(found)
        return result

    def _measurement(self, view: View, images: Tensor, params: Weights) -> Measurement:
        return Measurement(
            view.module, (images,), view.rename(params), self.settings, Processes.started()
        )

    def _sample(self, strategy: Any, rows: list[int] | None = None) -> Sample:
        """Draw images of the experience, or read those of some rows."""
        if rows is None:
            count = len(strategy.experience.dataset)
            order = torch.randperm(count, generator=self._generator)
            rows = sorted(order[: self.settings.samples].tolist())
        return read_sample(strategy, rows)

    def _check(self, strategy: Any) -> None:
        """Raise ValueError before training when the experience could not be measured after it."""
        if self.penalty == "proximal":
            check_learning_rates(strategy.optimizer.param_groups, "give GFIPlugin penalty='loss'")
        model = bare(strategy.model)
        last = len(strategy.experience.dataset) - 1
        images, labels, tasks, _ = self._sample(strategy, [0, min(1, last)])
        self.readout.check(model, images, labels, tasks)

    def _diverged(self, what: str, strategy: Any) -> NonFiniteLossError:
        clock = strategy.clock
        cause = "lower the learning rate, or normalise the input"
        if self.gated and self.penalty == "loss":
            cause = (
                f"dwa_lambda={self.dwa_lambda} with penalty='loss' diverges where learning rate "
                "times dwa_lambda times importance is more than 2: use penalty='proximal', lower "
                "dwa_lambda or lower the learning rate"
            )
        return NonFiniteLossError(
            f"{what} became NaN or infinite in epoch {clock.train_exp_epochs}, experience "
            f"{clock.train_exp_counter}; {cause}."
        )
