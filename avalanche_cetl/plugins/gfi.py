"""GFIPlugin: Generalized Fisher Information where EWCPlugin stands.

How it pays: by default in a proximal step after the optimiser's (:class:`Pull`), once an iteration,
at the step size of each weight's parameter group: the learning rate, and what momentum makes of it
(:func:`~avalanche_cetl.allocation.proximal.step_sizes`). The weights stay finite at every strength,
where the penalty in the loss diverges as soon as learning rate times ``dwa_lambda`` times
importance is more than 2. With SGD, with or without momentum, both forms come to rest at the same
weights; on the way they agree to first order in the learning rate, but for some 1 / (1 - momentum)
mini-batches after the momentum was empty or the gradient has changed, in which the pull is ahead.
Adaptive optimisers (Adam and its kin, RMSprop, Adagrad) divide gradients by their size, a penalty's
in the loss too, but not the pull: there the best strength is another one than in the loss. A pull
is always towards the old weights; a penalty in the loss is not where an optimiser maximises, which
is refused. Parameters that the optimiser does not hold stay; those without a gradient in a step
are pulled, as they are by a penalty in the loss. A step that a gradient scaler skips is still
followed by its pull.

Without the gate (``threshold=0, probability=1``) this is EWC with an exact Fisher information:
Avalanche's EWCPlugin squares gradients of mini-batch means instead, and has no factor 1/2 in its
penalty.

With ``basis="kronecker"`` all of this holds direction by direction, in the eigenbasis of each
layer's Kronecker factors, and the old experiences are one sum around the newest weights
(:class:`~avalanche_cetl.allocation.memory.KroneckerMemory`). In both bases an iteration costs the
same however many experiences there were.

Parameters that require no gradient when an experience ends are not measured; those measured before
are held whenever they train. Parameters that grow between experiences (heads) keep the importance
of their old part; new ones are free. Networks, and parts of them, may be wrapped (torch.compile,
DataParallel, DistributedDataParallel) between experiences: parameters have their names without
wrappers, and measurements read the layers themselves. A network that has lost a parameter that is
held, as one that was pruned or reparametrised meanwhile has, is refused. In networks with heads by
task each image is read through the head of its own task; where an old experience had several, new
images take its heads in turn.
"""

from __future__ import annotations

import math
from collections.abc import Set
from operator import attrgetter
from typing import Any, Literal, SupportsFloat, get_args

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_cetl.allocation.measure import Measurement, Task
from avalanche_cetl.allocation.memory import DiagonalMemory, KroneckerMemory, Memory
from avalanche_cetl.allocation.parameters import check_held, named_parameters, trainable, unwrapped
from avalanche_cetl.allocation.proximal import check_learning_rates
from avalanche_cetl.allocation.readout import Readout, View
from avalanche_cetl.allocation.sample import Sample, in_turn, read_sample
from avalanche_cetl.allocation.settings import Basis, GFISettings
from avalanche_cetl.common.arguments import renamed
from avalanche_cetl.common.errors import NonFiniteLossError
from avalanche_cetl.common.picks import Output
from avalanche_cetl.common.processes import Processes
from avalanche_cetl.information.estimators import Estimator
from avalanche_cetl.information.generalized import Quantile
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.likelihood import LossName
from avalanche_cetl.information.outputs import Likelihood

#: How the importances of several experiences are kept.
Mode = Literal["separate", "online"]
#: How the penalty is paid.
Penalty = Literal["proximal", "loss"]
Weights = dict[str, Tensor]


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
    :param keep_importance_data: keep past importances and anchors where training reads them no
        longer: in ``"online"`` mode, and in the Kronecker basis.
    :param penalty: ``"proximal"``: a step of its own after the optimiser's, which needs learning
        rates in the optimiser's groups, and counts their momentum; ``"loss"``: the sum above, added
        to the loss as printed, with a check that it is finite.
    :param basis: in which importance is measured and held: ``"diagonal"``, weight by weight, or
        ``"kronecker"``, in the eigenbasis of each layer's Kronecker factors. There weights that
        act together are held together, and much less is forgotten.
    :param rank: directions that one experience keeps on either side of a layer, >= 1, with
        ``basis="kronecker"`` alone; all together keep up to six times as many.
    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``. Default: 0.5 in the diagonal
        basis; 0 in the Kronecker basis, where a gate costs more than it gains.
    :param probability: p of eq. 10, in [0, 1]. Default: 0.9 in the diagonal basis; 1 in the
        Kronecker basis. With u = 0 and p = 1 there is no gate.
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"`` or ``"histogram"``.
    :param fisher: labels of the stored Fisher information: ``"sampled"`` from the model, or
        ``"empirical"``, the data's, as EWC does. ``"logits"`` reads no labels: it is the importance
        of the outputs (:mod:`avalanche_cetl.information.outputs`), by one vector per image, drawn
        anew for either task of a gate; each image counts the outputs of its own head. With
        ``normalize=False`` the penalty on one weight or direction is ``dwa_lambda / 2`` times the
        mean squared change of the outputs that it makes on old images, to first order.
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
    :ivar importances: per experience, Fisher information by parameter name; in the Kronecker
        basis that of directions. Tensors of single experiences are on the CPU.
    :ivar saved_params: per experience, the weights theta* it was measured at.
    :ivar bases: per experience, the Kronecker basis of its importance.
    :ivar gated: per old experience, GFI as the current experience holds it; in the Kronecker
        basis, and in ``"online"`` mode, all are one, under the number of the last.
    :ivar shared: per old experience, by parameter the share in [0, 1] of weights with RF >= u.
    :raises ValueError: for arguments out of range; before an experience trains, when it has no
        images, when the network has lost a parameter that is held, when the likelihood cannot read
        the network's output or the labels, when a parameter group has no learning rate, or
        maximises with a penalty in the loss; and :class:`NonFiniteLossError` when a penalty in the
        loss or a measured importance is not finite.
    """

    supports_distributed = True

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        dwa_lambda: float,
        mode: Mode = "separate",
        decay_factor: float | None = None,
        keep_importance_data: bool = False,
        *,
        penalty: Penalty = "proximal",
        basis: Basis = "diagonal",
        rank: int = 64,
        threshold: float | Quantile | None = None,
        probability: float | None = None,
        estimator: Estimator = "gaussian",
        fisher: LossName = "sampled",
        likelihood: Likelihood = "categorical",
        output: Output | None = None,
        samples: int = 256,
        normalize: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if mode not in get_args(Mode):
            raise ValueError(f"mode={mode!r} is not known. Allowed: 'separate', 'online'.")
        if (mode == "online") != (decay_factor is not None):
            raise ValueError(
                f"decay_factor={decay_factor} with mode={mode!r}: give decay_factor in 'online' "
                "mode, and only there."
            )
        if decay_factor is not None and not 0 <= decay_factor < math.inf:
            raise ValueError(f"decay_factor={decay_factor} has to be finite and >= 0.")
        if penalty not in get_args(Penalty):
            allowed = ", ".join(map(repr, get_args(Penalty)))
            raise ValueError(f"penalty={penalty!r} is not known. Allowed: {allowed}.")
        self._penalty = penalty
        self.dwa_lambda = dwa_lambda
        self.readout = Readout(likelihood, output)
        gate: dict[str, Any] = {"threshold": threshold, "probability": probability}
        self.settings = GFISettings(
            **{name: value for name, value in gate.items() if value is not None},
            estimator=estimator,
            fisher=fisher,
            samples=samples,
            basis=basis,
            rank=rank,
            normalize=normalize,
            seed=seed,
        )
        # The old experiences' own importances, which one sum makes unnecessary in a basis.
        keep = keep_importance_data or (mode == "separate" and basis == "diagonal")
        kind = KroneckerMemory if basis == "kronecker" else DiagonalMemory
        self.memory: Memory = kind(self.settings, decay_factor, keep)
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: tuple[Sample, dict[tuple[int, ...], Tensor]] | None = None

    # Other things were made by these arguments: they can be read, and not assigned.
    decay_factor = property(attrgetter("memory.decay"))
    mode = property(lambda self: "separate" if self.decay_factor is None else "online")
    keep_importance_data = property(attrgetter("memory.keep"))
    penalty = property(attrgetter("_penalty"))
    basis = property(attrgetter("settings.basis"))
    rank = property(attrgetter("settings.rank"))
    threshold = property(attrgetter("settings.threshold"))
    probability = property(attrgetter("settings.probability"))
    estimator = property(attrgetter("settings.estimator"))
    fisher = property(attrgetter("settings.fisher"))
    likelihood = property(attrgetter("readout.likelihood"))
    output = property(attrgetter("readout.output"))
    samples = property(attrgetter("settings.samples"))
    normalize = property(attrgetter("settings.normalize"))
    seed = property(attrgetter("settings.seed"))
    bases = property(attrgetter("memory.bases"), doc="Kronecker bases; none in the diagonal basis.")

    @property
    def dwa_lambda(self) -> float:
        """Return the strength of the penalty; one that is assigned counts from the next step."""
        return self._dwa_lambda

    @dwa_lambda.setter
    def dwa_lambda(self, value: float) -> None:
        if isinstance(value, str) or not isinstance(value, SupportsFloat):
            raise TypeError(f"dwa_lambda={value!r} has to be one number.")
        if not value >= 0 or (math.isinf(value) and self.penalty == "loss"):
            raise ValueError(f"dwa_lambda={value} has to be >= 0, and finite with penalty='loss'.")
        self._dwa_lambda = float(value)

    @property
    def importances(self) -> dict[int, Weights]:
        """Return Fisher information per experience, by parameter name."""
        return self.memory.importances

    @property
    def saved_params(self) -> dict[int, Weights]:
        """Return the weights theta* per experience, by parameter name."""
        return self.memory.saved_params

    @property
    def gated(self) -> dict[int, Weights]:
        """Return the importances as they are held, per old experience; made when they are read."""
        return self.memory.gated

    @property
    def shared(self) -> dict[int, dict[str, float]]:
        """Return the shares of weights with RF >= u, per old experience, by parameter."""
        return self.memory.shared

    # ------------------------------------------------------------------ callbacks

    def before_train_dataset_adaptation(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Draw the old task's labels for new images, while the model is as it was.

        The images are kept until the gate is drawn: another plugin may put another data set in
        the experience meanwhile, whose rows would not be those that the labels were drawn for.
        """
        if len(strategy.experience.dataset) == 0:
            raise ValueError(
                f"experience {strategy.clock.train_exp_counter} of the training has no images (its "
                "data set is empty), so there is nothing to measure or to train on; leave it out."
            )
        self._drawn = None
        heads = self.memory.heads(strategy.clock.train_exp_counter) if self.settings.gates else []
        if not heads:
            return
        images, labels, tasks, _ = self._sample(strategy)
        with unwrapped(strategy.model) as model:
            drawn = {
                old: self.readout.draw(
                    model, images, in_turn(old, tasks), self._generator, self.fisher
                )
                for old in heads
            }
        self._drawn = Sample(images, labels, tasks), drawn

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Gate the stored importances by what the old tasks and the new one share."""
        now = strategy.clock.train_exp_counter
        with unwrapped(strategy.model) as model:
            self._check(strategy, model)
            # Those that are frozen now may be trained later in the experience.
            params = self._held(model, self.memory.names(now))
            self.memory.grow(params)
            relative = self._relative(model, params) if self._drawn is not None else {}
        self._drawn = None
        self.memory.hold(now, params, relative, self._generator)

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the penalty to the loss, where that is its form."""
        pull = self.memory.pull
        if self.penalty != "loss" or not pull.importance or self.dwa_lambda == 0:
            return
        added = pull.penalty(self._held(strategy.model, pull.names), self.dwa_lambda)
        if not torch.isfinite(added):
            raise self._diverged("the penalty", strategy)
        strategy.loss += added

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Take the proximal step that follows the optimiser's."""
        self.hold_weights(strategy, strategy.optimizer)

    def hold_weights(self, strategy: Any, optimizer: Optimizer) -> None:
        """Take the proximal step at an optimiser's step sizes, where the penalty has one."""
        pull = self.memory.pull
        if self.penalty != "proximal" or not pull.importance or self.dwa_lambda == 0:
            return
        pull.step(self._held(strategy.model, pull.names), optimizer, self.dwa_lambda)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Measure the Fisher information of the experience that ends."""
        now = strategy.clock.train_exp_counter
        with unwrapped(strategy.model) as model:
            params = trainable(model)
            images, labels, tasks, _ = self._sample(strategy)
            rest = (tasks, self._generator)
            if self.fisher == "empirical":
                targets = self.readout.known(model, images, labels, *rest)
            else:
                targets = self.readout.draw(model, images, *rest, self.fisher)
            view = self.readout.view(model, tasks)
            measurement = self._measurement(view, images, params)
            task = Task(*view.task(targets, tasks, self.fisher))
            measurement.choose_basis(task)
            fisher = view.restore(measurement.fisher(task))
            heads = tuple(tasks.unique().tolist()) if is_multi_task_module(model) else ()
        if not all(bool(value.isfinite().all()) for value in fisher.values()):
            raise self._diverged("the Fisher information", strategy)
        basis = None if measurement.basis is None else view.restore_basis(measurement.basis)
        self.memory.add(now, fisher, basis, params, heads)

    # ------------------------------------------------------------------ pieces

    def _held(self, model: nn.Module, names: Set[str]) -> Weights:
        """Return the network's parameters of these names.

        :raises ValueError: when it has one of them no more.
        """
        params = named_parameters(model)
        check_held(names, params, "GFIPlugin")
        return {name: params[name] for name in params if name in names}

    def _relative(self, model: nn.Module, params: Weights) -> dict[tuple[int, ...], Weights]:
        """Relative Fisher information of every old task with the new one."""
        assert self._drawn is not None
        (images, labels, tasks, _), drawn = self._drawn
        rest = (tasks, self._generator)
        if self.fisher == "logits":
            new = self.readout.draw(model, images, *rest, self.fisher)
        else:
            new = self.readout.known(model, images, labels, *rest)
        result: dict[tuple[int, ...], Weights] = {}
        for old, targets in drawn.items():
            old_tasks = in_turn(old, tasks)
            view = self.readout.view(model, old_tasks, tasks)
            pair = (targets, old_tasks), (new, tasks)
            both = [Task(*view.task(*one, self.fisher)) for one in pair]
            _, found = self._measurement(view, images, params, self.memory.basis).relative(*both)
            result[old] = view.restore(found)
        return result

    def _measurement(
        self, view: View, images: Tensor, params: Weights, basis: KroneckerBasis | None = None
    ) -> Measurement:
        basis = None if basis is None else view.rename_basis(basis)
        named, processes = view.rename(params), Processes.started()
        return Measurement(view.module, (images,), named, self.settings, processes, basis)

    def _sample(self, strategy: Any, rows: list[int] | None = None) -> Sample:
        """Draw images of the experience, or read those of some rows."""
        if rows is None:
            count = len(strategy.experience.dataset)
            order = torch.randperm(count, generator=self._generator)
            rows = sorted(order[: self.settings.samples].tolist())
        return read_sample(strategy, rows)

    def _check(self, strategy: Any, model: nn.Module) -> None:
        """Raise ValueError before training when the experience could not be measured after it."""
        if self.penalty == "proximal":
            check_learning_rates(strategy.optimizer.param_groups, "give GFIPlugin penalty='loss'")
        elif any(group.get("maximize") for group in strategy.optimizer.param_groups):
            raise ValueError(
                "the optimizer has maximize=True, so a penalty in the loss would drive weights "
                "away from where they are to stay; give GFIPlugin penalty='proximal'."
            )
        last = len(strategy.experience.dataset) - 1
        images, labels, tasks, _ = self._sample(strategy, [0, min(1, last)])
        self.readout.check(model, images, labels, tasks, self.fisher)

    def _diverged(self, what: str, strategy: Any) -> NonFiniteLossError:
        clock = strategy.clock
        cause = "lower the learning rate, or normalise the input"
        if self.memory.pull.importance and self.penalty == "loss":
            cause = (
                f"dwa_lambda={self.dwa_lambda} with penalty='loss' diverges where learning rate "
                "times dwa_lambda times importance is more than 2: use penalty='proximal', lower "
                "dwa_lambda or lower the learning rate"
            )
        return NonFiniteLossError(
            f"{what} became NaN or infinite in epoch {clock.train_exp_epochs}, experience "
            f"{clock.train_exp_counter}; {cause}."
        )
