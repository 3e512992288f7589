"""WeightPenalty: hold what old tasks need of a network's weights, in any training loop of torch.

How it is measured is in :mod:`~avalanche_cetl.allocation.task_measurer`, what is kept in
:mod:`~avalanche_cetl.allocation.store`, the two forms of the penalty in
:mod:`~avalanche_cetl.allocation.proximal`, and which parameters are held in
:mod:`~avalanche_cetl.allocation.parameters`.

With ``basis="diagonal", threshold=0, probability=1`` this is EWC with an exact Fisher information:
Avalanche's EWCPlugin squares gradients of mini-batch means instead, and has no factor 1/2 in its
penalty. In the Kronecker basis all holds direction by direction, in the eigenbasis of each layer's
Kronecker factors. In both bases an iteration costs the same however many tasks there were.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from avalanche_cetl.allocation.arguments import PenaltyArguments, state_of_0_2
from avalanche_cetl.allocation.in_force import InForce
from avalanche_cetl.allocation.kronecker_store import store_of
from avalanche_cetl.allocation.output_likelihood import OutputLikelihood
from avalanche_cetl.allocation.parameters import device_of, held, trainable, unwrapped
from avalanche_cetl.allocation.proximal import check_optimizer, diverged, form_of
from avalanche_cetl.allocation.sample import Rows, rows_of
from avalanche_cetl.allocation.seen import SeenClasses
from avalanche_cetl.allocation.settings import (
    Basis,
    GFISettings,
    Mode,
    Penalty,
    check_mode,
    with_defaults,
)
from avalanche_cetl.allocation.task_measurer import TaskMeasurer
from avalanche_cetl.common.picks import Output
from avalanche_cetl.common.validation import check_choice, renamed
from avalanche_cetl.information.generalized import Quantile
from avalanche_cetl.information.likelihood import LossName
from avalanche_cetl.information.outputs import Likelihood

logger = logging.getLogger(__name__)
Weights = dict[str, Tensor]


class WeightPenalty(PenaltyArguments):
    r"""Hold what old tasks need of a network's weights, in any training loop (eqs. 9 to 11).

    When a task e ends, :meth:`remember` measures the Fisher information I of the weights on its
    images. Later tasks pay
    :math:`\sum_e \sum_i \frac{\lambda}{2} I_{ei} (\theta_i - \theta^*_{ei})^2`, in one of two
    forms: :meth:`loss` is its value, to be added to the loss, and :meth:`step` its proximal step,
    after the optimiser's. A loop calls both: the one that is not ``penalty`` does nothing. No old
    data is kept. A pretrained network is remembered before the first task, on any images on which
    its knowledge should hold. With a gate (``threshold``, ``probability``) only what the old tasks
    and the new one both need is held: :meth:`gate` compares them when a task begins.

    It needs no argument: then it is the importance of the outputs, in its own unit and in the
    Kronecker basis, without a gate. Where ``basis`` is named, what is not given is as in version
    0.2 (``avalanche_cetl.allocation.settings.DEFAULTS``): the sampled Fisher information,
    rescaled to mean 1, as a proximal step; with ``"diagonal"`` the gate of the paper (u = 0.5, p =
    0.9). In Avalanche it is :class:`~avalanche_cetl.plugins.GFIPlugin`.

    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> penalty = WeightPenalty()
    >>> for x, y in [(torch.rand(8, 2), torch.arange(8) % 2) for task in range(2)]:
    ...     loss = nn.functional.cross_entropy(model(x), y) + penalty.loss(model, optimizer)
    ...     optimizer.zero_grad(); loss.backward(); optimizer.step()
    ...     penalty.step(model, optimizer)
    ...     penalty.remember(model, x, y)
    >>> sorted(penalty.bases)
    [1]

    :param dwa_lambda: strength of the penalty, lambda of eq. 11, >= 0. With ``fisher="logits"``
        and ``normalize=False`` it has a unit: the penalty is, to first order, ``dwa_lambda / 2``
        times the mean variance (under p, the shares of the outputs) of the change of the centred
        logits on old images. With ``normalize`` it counts against importances of mean 1. To be
        given where ``basis`` is.
    :param mode: ``"separate"``: one importance and anchor per old task; ``"online"``: one for all,
        old ones fading by ``decay_factor``.
    :param decay_factor: for ``"online"`` alone, and needed there.
    :param keep_importance_data: keep past importances and anchors where training reads them no
        longer: in ``"online"`` mode, and in the Kronecker basis.
    :param penalty: ``"proximal"``: a step of its own after the optimiser's, which needs learning
        rates in the optimiser's groups, and counts their momentum; ``"loss"``: the sum above, added
        to the loss as printed, with a check that it is finite; ``"auto"``: in the loss under Adam
        and its kin, which divide gradients by their size, else proximal, which is always stable
        (:func:`~avalanche_cetl.allocation.proximal.form_of`).
    :param basis: in which importance is measured and held: ``"kronecker"``, in the eigenbasis of
        each layer's Kronecker factors, or ``"diagonal"``, weight by weight. In the first, weights
        that act together are held together, and much less is forgotten. None: the first, with
        the defaults above.
    :param rank: directions that one task keeps on either side of a layer, >= 1, in the Kronecker
        basis alone; all together keep up to six times as many.
    :param threshold: u of eq. 10, in [0, 1], or ``Quantile(q)``.
    :param probability: p of eq. 10, in [0, 1]. With u = 0 and p = 1 there is no gate.
    :param estimator: of relative Fisher: ``"gaussian"``, ``"rank"``, ``"histogram"``, or a name
        that :func:`~avalanche_cetl.information.register_estimator` was given.
    :param fisher: labels of the stored Fisher information: ``"sampled"`` from the model, or
        ``"empirical"``, the data's, as EWC does. ``"logits"`` is the importance of the outputs
        (:func:`~avalanche_cetl.information.sample_output_vectors`), by one vector per image,
        drawn anew for either task of a gate; each image counts the outputs of its own head.
    :param likelihood: what the network's output is: ``"categorical"``: class logits ``(N, K)``;
        ``"bernoulli"``: one logit or several, each of yes or no, as binary cross entropy reads
        them; ``"gaussian"``: real values, as a squared error reads them.
    :param output: picks the tensor of logits out of the network's output: an index, a key or a
        callable. Default: the output is the tensor.
    :param unseen: weight of the logits of classes that have had no label yet, in [0, 1], beside 1
        for the others of the same head; with ``fisher="logits"`` and class logits alone. A task
        without labels counts all as seen.
    :param samples: images that each measurement reads, drawn from those of the task (all of a
        smaller one), >= 2. Default: 256; where no basis is named one in 32 of the task's images, if
        that is more, at most 2,000.
    :param damping: share of each layer's mean importance, >= 0, that all its weights have besides;
        in the Kronecker basis alone. It holds what the quadratic cannot see: two layers that change
        together, each in free directions. 0.02 pays in long streams of large tasks.
    :param normalize: rescale each importance to mean 1 over its non-zero entries.
    :param seed: of the drawn images, labels and gates. The draws are the object's own and the
        same in every process of a distributed run (torch.distributed, gloo or nccl), which all
        give the same images; each then measures its share of them, and the sums over samples are
        all-reduced.
    :ivar importances: per task, by its number, Fisher information by parameter name; in the
        Kronecker basis that of directions. Tensors of single tasks are on the CPU.
    :ivar saved_params: per task, the weights theta* it was measured at.
    :ivar bases: per task, the Kronecker basis of its importance.
    :ivar gated: per old task, GFI as the current task holds it; in the Kronecker basis, and in
        ``"online"`` mode, all are one, under the number of the last.
    :ivar moved: how far the last task has moved the outputs on old images, as the quadratic
        predicts it to first order: the root of their mean variance above, in standard deviations of
        logits. In the Kronecker basis it counts from the end of the task before. None where the
        quadratic has no such unit.
    :ivar shared: per old task, by parameter the share in [0, 1] of weights with RF >= u.
    :raises ValueError: for arguments out of range; later, when there are no images, when the
        network has lost a parameter that is held, when the likelihood cannot read the network's
        output or the labels, when a parameter group has no learning rate, or maximises with a
        penalty in the loss; and :class:`NonFiniteLossError` when a penalty in the loss or a
        measured importance is not finite.
    """

    #: Whether a user's own loop calls it, which may call the wrong form.
    by_hand = True

    @renamed(ewc_lambda="dwa_lambda")
    def __init__(
        self,
        dwa_lambda: float | None = None,
        mode: Mode = "separate",
        decay_factor: float | None = None,
        keep_importance_data: bool = False,
        *,
        penalty: Penalty | None = None,
        basis: Basis | None = None,
        rank: int = 64,
        threshold: float | Quantile | None = None,
        probability: float | None = None,
        estimator: str = "gaussian",
        fisher: LossName | None = None,
        likelihood: Likelihood = "categorical",
        output: Output | None = None,
        unseen: float = 0.03,
        samples: int | None = None,
        damping: float = 0.0,
        normalize: bool | None = None,
        seed: int = 0,
    ):
        chosen = with_defaults(
            basis,
            dwa_lambda=dwa_lambda,
            penalty=penalty,
            threshold=threshold,
            probability=probability,
            fisher=fisher,
            normalize=normalize,
            samples=samples,
        )
        self._penalty = chosen.pop("penalty")
        check_choice("penalty", self._penalty, get_args(Penalty))
        check_mode(mode, decay_factor)
        self.dwa_lambda = chosen.pop("dwa_lambda")
        self.settings = GFISettings(**chosen, estimator=estimator, rank=rank, seed=seed)
        # The old tasks' own importances, which one sum makes unnecessary in a basis.
        keep = keep_importance_data or (mode == "separate" and self.basis == "diagonal")
        self.store = store_of(self.settings, decay_factor, keep, damping)
        reading = OutputLikelihood(likelihood, output)
        self.measurer = TaskMeasurer(reading, self.settings, SeenClasses(unseen))
        self.moved: float | None = None
        self.in_force = InForce()
        self._loaded = False

    # ------------------------------------------------------------------ in training

    def acts(self, form: str, model: nn.Module, optimizer: Optimizer | None) -> bool:
        """Return whether the penalty acts in this form now.

        :param form: ``"loss"`` or ``"proximal"``.
        :param model: the network; before the first iteration of a task the penalty is made for it.
        :param optimizer: of the training, by which ``penalty="auto"`` takes its form.
        :raises ValueError: when a task that needs a gate has begun without :meth:`gate`.
        """
        chosen = form_of(self.penalty, optimizer)
        if self.dwa_lambda == 0 or not self.importances:
            return False
        if not self.store.holds:
            if self.settings.gates and not self.measurer.drawn:
                raise ValueError(
                    f"threshold={self.threshold} and probability={self.probability} make a gate, "
                    "which compares the old tasks with the one that begins: call gate(model, "
                    "images, labels) with images of the new task before its first iteration, or "
                    "give threshold=0, probability=1 for no gate."
                )
            self.hold(model)
        elif self._loaded:  # a state that may be of another device
            self.store.grow(self._held(model, self.store.names))
        self._loaded = False
        if chosen == "proximal":
            self.store.join()
        acts = form == chosen and bool(self.store.quadratic.importance)
        self.in_force.called(chosen, acts and form == "loss", not self.by_hand)
        return acts

    def loss(self, model: nn.Module, optimizer: Optimizer | None = None) -> Tensor:
        """Return the penalty's value, to be added to the loss; 0 where its form is the step.

        :param model: the network in training, wrapped or not.
        :param optimizer: of the training; needed with ``penalty="auto"`` alone.
        :return: a scalar, differentiable in the network's parameters; on their device.
        """
        if not self.acts("loss", model, optimizer):
            return torch.zeros((), device=device_of(model))
        quadratic = self.store.quadratic
        added = quadratic.penalty(self._held(model, quadratic.names), self.dwa_lambda)
        if not torch.isfinite(added):
            raise diverged("the penalty", "loss", self)
        return added

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take the proximal step at the optimiser's step sizes, where that is the penalty's form.

        :param model: the network in training, wrapped or not; its weights change in place.
        :param optimizer: that has just made its step.
        """
        check_optimizer(optimizer, form_of(self.penalty, optimizer), type(self).__name__)
        if self.acts("proximal", model, optimizer):
            params = self._held(model, self.store.quadratic.names)
            self.store.quadratic.step(params, optimizer, self.dwa_lambda)
            self.in_force.stepped(params, optimizer)

    # ------------------------------------------------------------------ between tasks

    def remember(
        self,
        model: nn.Module,
        images: Tensor | Dataset[Any] | Rows,
        labels: Tensor | None = None,
        tasks: Tensor | Sequence[int] | None = None,
        *,
        number: int | None = None,
    ) -> None:
        """Measure what the weights as they are do on some images, and hold it from now on.

        When a task has ended, on its images; before the first task, where a network is pretrained,
        on images on which it should stay as it is.

        :param model: the network, wrapped or not; it is read in evaluation mode and stays as it is.
        :param images: ``(N, ...)``, or a data set of images or of tuples ``(image, label, ...)``,
            without training augmentation; ``samples`` of them are drawn.
        :param labels: ``(N, ...)``; -1 where a class is unknown. Those of a data set itself are
            known of the drawn images alone. ``fisher="empirical"`` needs them, ``"logits"`` reads
            which classes have been seen.
        :param tasks: task labels, ``(N,)`` or a list, for heads by task; a data set has its own.
        :param number: under which importances are kept; default: one more than the last.
        """
        rows = rows_of(images, labels, tasks, model)
        if number is None or number in self.store.numbers:
            number = self._next_number()
        with unwrapped(model) as network:
            params = trainable(network)
            found = self.measurer.fisher(network, rows, params)
        if not all(bool(value.isfinite().all()) for value in found.values.values()):
            raise diverged("the Fisher information", self.penalty, self)
        self.in_force.ended()
        self.moved = self._movement(model)
        self.store.add(number, found.values, found.basis, params, found.heads)
        self.in_force.measured(model, params.keys())
        told = f"task {number}: {found.images} images and {found.outputs} outputs are measured"
        if self.moved is not None:
            told += f"; outputs on old images have moved by {self.moved:.3g} (predicted rms)"
        logger.info("%s", told)

    def gate(
        self,
        model: nn.Module,
        images: Tensor | Dataset[Any],
        labels: Tensor | None = None,
        tasks: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Begin a task: of what old tasks need, hold what this one needs too (eq. 10).

        It is asked on the new task's images, at the weights as they are, how much the two tasks'
        Fisher values tell about each other: those of the old task (labels drawn from the network)
        and those of the new one (its labels; unknown ones are drawn). Without a gate all is held,
        and nothing has to be called.

        Where a head grows between two tasks, call :meth:`draw` before it has grown, and
        :meth:`hold` afterwards, in the place of this method.

        :param model: see :meth:`remember`, as ``images``, ``labels`` and ``tasks``.
        """
        self.draw(model, images, labels, tasks)
        self.hold(model)

    def draw(
        self,
        model: nn.Module,
        images: Tensor | Dataset[Any] | Rows,
        labels: Tensor | None = None,
        tasks: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Draw the old tasks' labels for a new one's images, while the network is as it was.

        The images are kept until the gate is drawn: the rows of a data set may be others by then.

        :param model: see :meth:`remember`, as ``images``, ``labels`` and ``tasks``.
        """
        rows = rows_of(images, labels, tasks, model)
        with unwrapped(model) as network:
            self.measurer.draw(network, rows, self.store.heads() if self.settings.gates else [])

    def hold(self, model: nn.Module) -> None:
        """Gate the importances by what was drawn, and hold them from the next iteration on.

        :param model: see :meth:`remember`.
        """
        with unwrapped(model) as network:
            # Those that are frozen now may be trained later in the task.
            params = self._held(network, self.store.names)
            self.store.grow(params)
            self.in_force.begin(network)
            basis = self.store.basis if self.settings.gates else None
            relative = self.measurer.relative(network, params, basis)
        self.store.hold(params, relative, self.measurer.generator)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what tasks have left, and the state of the draws, as plain data and tensors.

        What was drawn for a gate that is not yet held is no part of it.
        """
        generator = self.measurer.generator.get_state()
        return {
            "units": self._units(),
            "store": self.store.state_dict(),
            "generator": generator,
            "seen": {head: list(known) for head, known in self.measurer.seen.by_head.items()},
            "moved": self.moved,
            "frozen": sorted(self.in_force.frozen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a copy of a state.

        :param state: of an object with the same arguments.
        :raises ValueError: for the state of another basis, mode, likelihood or kind of importance.
        """
        if "memory" in state:  # attribute by attribute, as version 0.2 kept it
            state = state_of_0_2(state)
        self._check_units(state)
        self.store.load_state_dict(state["store"])
        self.measurer.generator.set_state(state["generator"].cpu())
        self.measurer.seen.by_head = {h: list(k) for h, k in state.get("seen", {}).items()}
        self.measurer.drawn, self.moved = {}, state.get("moved")
        self.in_force = InForce(state.get("frozen", ()))
        self._loaded = True

    # ------------------------------------------------------------------ pieces

    def _held(self, model: nn.Module, names: Set[str]) -> Weights:
        return held(model, names, type(self).__name__)

    @torch.no_grad()
    def _movement(self, model: nn.Module) -> float | None:
        """Return how far the outputs on old images have moved; None without a unit for it."""
        natural = self.fisher == "logits" and not self.normalize and not self.settings.gates
        if not natural or not self.importances or self.in_force.thawed:
            return None
        if not self.store.holds:
            self.hold(model)
        params = self._held(model, self.store.names)
        self.store.grow(params)
        return self.store.movement(params)
