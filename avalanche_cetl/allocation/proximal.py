"""A quadratic penalty, in the loss or as a proximal step after the optimiser's.

The proximal step is taken once an iteration, at the step size of each weight's parameter group: the
learning rate, and what momentum makes of it (:func:`step_sizes`). The weights stay finite at every
strength, where the penalty in the loss diverges as soon as learning rate times strength times
importance is more than 2. With SGD, with or without momentum, both forms come to rest at the same
weights; on the way they agree to first order in the learning rate, but for some 1 / (1 - momentum)
mini-batches after the momentum was empty or the gradient has changed, in which the step is ahead.
Adaptive optimisers (Adam and its kin, RMSprop, Adagrad) divide gradients by their size, a penalty's
in the loss too, but not the step: there the best strength is another one than in the loss. A step
is always towards the old weights; a penalty in the loss is not where an optimiser maximises, which
is refused. Parameters that the optimiser does not hold stay; those without a gradient in an
iteration are moved, as they are by a penalty in the loss. An optimiser's step that a gradient
scaler skips is still followed by the proximal one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_cetl.allocation.parameters import basis_of, place_of, widened
from avalanche_cetl.common.validation import NonFiniteLossError
from avalanche_cetl.information.generalized import dwa_penalty
from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis

Weights = dict[str, Tensor]


class QuadraticPenalty:
    """One quadratic that equals a sum of them, its proximal step and its value.

    The penalties ``sum_e lam/2 I_ei (theta_i - theta*_ei)^2`` of all old experiences are the sum
    ``lam/2 I_i (theta_i - theta*_i)^2 + lam c`` with

    ``I_i = sum_e I_ei``, ``theta*_i = sum_e I_ei theta*_ei / I_i``

    and a constant c, so a step costs the same however many experiences there were. After an
    optimiser's step of size ``eta`` (:func:`step_sizes`: the learning rate, and what momentum makes
    of it), the proximal operator of ``eta`` times the penalty is

    ``argmin_t  1/2 (t - theta_i)^2 + eta lam/2 I_i (t - theta*_i)^2
    = (theta_i + eta lam I_i theta*_i) / (1 + eta lam I_i)``.

    It is the implicit Euler step of the penalty: theta moves to theta* by the share
    ``w_i = eta lam I_i / (1 + eta lam I_i)``, which lies in [0, 1) for every strength. The explicit
    step, which a penalty in the loss makes under SGD, moves it by ``eta lam I_i`` and diverges
    where that is more than 2; for small steps the two agree to first order in eta.

    ``w_i`` is computed as ``I_i / (I_i + 1 / (eta lam))``, which overflows nowhere: it goes to 1
    as the strength goes to infinity, and is 0 where nothing is held.

    In a basis all of this holds direction by direction: the layer's matrix moves by
    ``-U (w * (U^T (W - W*) V)) V^T``. Where weight and bias have different learning rates, each
    moves as it would if the other had its own.

    :ivar importance: I by parameter name, >= 0; of layers with a basis, by direction.
    :ivar anchors: theta* by parameter name; where I is 0 it means nothing. Of layers with a basis
        ``U^T W* V``, by direction.
    :ivar basis: of the layers whose importance is by direction.
    :ivar constant: c, >= 0.
    :ivar damping: by parameter name, an importance that all its weights have besides, also those
        outside of the directions of a basis.
    :ivar centres: the weights theta* that it holds them at; rows that a parameter has got since are
        free.
    :ivar beside: one more quadratic, in a basis of its own, whose value is added; a step is of one
        quadratic alone. None: there is none.
    """

    def __init__(self) -> None:
        self.importance: Weights = {}
        self.anchors: Weights = {}
        self.basis = KroneckerBasis({})
        self.constant = 0.0
        self.damping: dict[str, float] = {}
        self.centres: Weights = {}
        self.beside: QuadraticPenalty | None = None

    @classmethod
    def within(
        cls, basis: KroneckerBasis, importance: Mapping[str, Tensor], anchors: Mapping[str, Tensor]
    ) -> QuadraticPenalty:
        """Return one quadratic in a basis.

        :param basis: of the importance.
        :param importance: by parameter name, in the basis, >= 0.
        :param anchors: the weights theta*, by parameter name.
        """
        made = cls()
        made.importance, made.basis = dict(importance), basis
        made.anchors = {
            name: basis[name].rotate(anchors) if name in basis else anchors[name]
            for name in importance
        }
        return made

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        beside = self.beside and self.beside.state_dict()
        return vars(self) | {"basis": self.basis.state_dict(), "beside": beside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state."""
        self.beside = None
        if state.get("beside"):
            self.beside = QuadraticPenalty()
            self.beside.load_state_dict(state["beside"])
        self.importance, self.anchors = dict(state["importance"]), dict(state["anchors"])
        self.basis, self.constant = basis_of(state["basis"]), float(state["constant"])
        self.damping = dict(state.get("damping", {}))
        self.centres = dict(state.get("centres", {}))

    def to(self, device: torch.device) -> None:
        """Move all of it to a device."""
        if self.beside:
            self.beside.to(device)
        if all(value.device == device for value in self.importance.values()):
            return
        self.importance = {name: value.to(device) for name, value in self.importance.items()}
        self.anchors = {name: value.to(device) for name, value in self.anchors.items()}
        self.centres = {name: value.to(device) for name, value in self.centres.items()}
        self.basis = self.basis.to(device)

    @property
    def names(self) -> Set[str]:
        """Return the names of the parameters that are held."""
        beside = self.beside.names if self.beside else set()
        return self.importance.keys() | self.basis.folded | beside

    @torch.no_grad()
    def add(self, importance: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> None:
        """Take one more experience in: its importances, and the weights they were measured at.

        Where the network's type has changed, the sum is in the wider one.
        """
        for name, own in importance.items():
            anchor = anchors[name].detach()
            if name not in self.importance:
                self.importance[name] = own.clone()
                self.anchors[name] = anchor.clone()
                continue
            self.importance[name] = _promoted(self.importance[name], own)
            self.anchors[name] = _promoted(self.anchors[name], anchor)
            anchor = anchor.to(self.anchors[name].dtype)
            total = self.importance[name].add_(own)
            # A running mean: products of large importances and weights could overflow.
            share = torch.where(total > 0, own / total, torch.zeros_like(total))
            away = (self.anchors[name] - anchor).abs().square()
            self.constant += float(((total - own) * share * away).sum(dtype=torch.float64)) / 2
            self.anchors[name].lerp_(anchor, share.to(anchor.dtype))

    def penalty(self, params: Mapping[str, Tensor], strength: float, damped: bool = True) -> Tensor:
        """Return the value of all experiences' penalties, differentiable in ``params``.

        :param params: by name; what they lack is not held.
        :param strength: lam, finite, >= 0.
        :param damped: whether the damping counts.
        """
        held, away = {}, {}
        params = {name: widened(params[name]) for name in self.names if name in params}
        for name, value in self.importance.items():
            if name in self.basis:
                layer = self.basis[name]
                if all(one in params for one in layer.parameters):
                    held[name], away[name] = value, layer.rotate(params)
            elif name in params:
                held[name], away[name] = value, params[name]
        value = dwa_penalty(away, self.anchors, held, strength) + strength * self.constant
        for name, own in self.damping.items() if damped else ():
            if name in params:
                centre = self.centres[name].to(params[name].dtype)
                apart = params[name][place_of(centre.shape)] - centre
                value = value + strength / 2 * own * apart.square().sum()
        if self.beside:
            value = value + self.beside.penalty(params, strength)
        return value

    @torch.no_grad()
    def step(self, params: Mapping[str, Tensor], optimizer: Optimizer, strength: float) -> None:
        """Take the proximal step at the optimiser's step sizes as they are now.

        Parameters that the optimiser does not hold, or that are frozen, stay.

        :param params: by name; their values change in place.
        :param optimizer: the one that has just made its step.
        :param strength: lam, >= 0, or infinity.
        """
        assert self.beside is None  # one step after the other would come to rest elsewhere
        if not self.importance or strength == 0:
            return
        sizes = step_sizes(optimizer)
        for name, importance in self.importance.items():
            if name in self.basis:
                self._step_of(self.basis[name], importance, params, sizes, strength)
                continue
            parameter = params.get(name)
            if parameter is None or not parameter.requires_grad:
                continue
            scale = sizes.get(id(parameter), 0.0) * strength
            if scale > 0:
                if name in self.damping:
                    importance = importance.clone()
                    importance[place_of(self.centres[name].shape)] += self.damping[name]
                anchor, now = self.anchors[name], widened(parameter)
                now.lerp_(anchor.to(now.dtype), _share(importance, scale).to(now.dtype))
                if now is not parameter:  # of half precision
                    parameter.copy_(now)

    def _step_of(
        self,
        layer: LayerBasis,
        importance: Tensor,
        params: Mapping[str, Tensor],
        sizes: Mapping[int, float],
        strength: float,
    ) -> None:
        """Take the step of a layer with a basis."""
        if not all(name in params for name in layer.parameters):
            return
        own = {name: params[name] for name in layer.parameters}
        scales = {
            name: sizes.get(id(parameter), 0.0) * strength
            for name, parameter in own.items()
            if parameter.requires_grad
        }
        at = {name: scale for name, scale in scales.items() if scale > 0}
        if not at:
            return
        shapes = {name: parameter.shape for name, parameter in own.items()}
        away = layer.rotate({name: p.to(importance.dtype) for name, p in own.items()})
        away -= self.anchors[layer.weight]
        damping = self.damping.get(layer.weight, 0.0)
        for scale in set(at.values()):
            # All weights by the damping's share, and the directions by what theirs is more.
            least = damping / (damping + 1 / scale) if damping else 0.0
            more = _share(importance + damping if damping else importance, scale)
            if damping:
                more -= least
            moved = layer.restore(more.mul_(away), shapes)
            for name, one in at.items():
                if one == scale:
                    if damping:
                        centre = self.centres[name].to(own[name].dtype)
                        place = place_of(centre.shape)
                        moved[name][place] += least * (own[name][place] - centre)
                    own[name].sub_(moved[name])


def _promoted(value: Tensor, other: Tensor) -> Tensor:
    """Return a tensor in the wider of its type and another's."""
    return value.to(torch.promote_types(value.dtype, other.dtype))


def _share(importance: Tensor, scale: float) -> Tensor:
    """Return ``w = scale I / (1 + scale I)``, in [0, 1]."""
    weight = importance + max(1 / scale, torch.finfo(importance.dtype).tiny)
    return torch.div(importance, weight, out=weight)


def step_sizes(optimizer: Optimizer) -> dict[int, float]:
    """Return how far a lasting gradient of 1 moves each parameter in a step, by ``id(parameter)``.

    That is the learning rate where an optimiser has no momentum, or takes a running mean of
    gradients (Adam and its kin, Muon). SGD's buffer is a sum, ``b <- m b + (1 - d) g``: a gradient
    that lasts moves by ``lr (1 - d) / (1 - m)`` a step, with Nesterov's momentum too, and so does a
    gradient in the loss. RMSprop's is the same sum, of gradients that were divided by their size.
    What an optimiser divides gradients by does not count. Sums are recognised by the settings
    ``dampening`` (of SGD) and ``centered`` (of RMSprop), which optimisers of the same form outside
    of torch have too. With ``m >= 1`` the sum grows without end: infinity.
    """
    return {
        id(parameter): size
        for group in optimizer.param_groups
        for size in (float(group["lr"]) * _summed(group),)
        for parameter in group["params"]
    }


def _summed(group: Mapping[str, Any]) -> float:
    """Return what a parameter group's momentum makes of a lasting gradient of 1."""
    if not ("dampening" in group or "centered" in group) or not group.get("momentum"):
        return 1.0
    damped, rest = 1 - group.get("dampening", 0), 1 - group["momentum"]
    return damped / rest if rest > 0 else math.inf


def form_of(penalty: str, optimizer: Optimizer | None) -> str:
    """Return the form of a penalty in a training, ``"proximal"`` or ``"loss"``.

    With ``"auto"`` it is ``"loss"`` under optimisers that divide gradients by a running size of
    them: Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, and those of their form
    outside of torch. They are recognised by their settings, through wrappers too: an ``eps`` beside
    the decay of a second moment. Under all others it is ``"proximal"``, which is stable with any.

    :param penalty: ``"auto"``, ``"proximal"`` or ``"loss"``.
    :param optimizer: of the training; read for ``"auto"`` alone.
    :raises ValueError: for ``"auto"`` without an optimiser.
    """
    if penalty != "auto":
        return penalty
    if optimizer is None:
        raise ValueError(
            "penalty='auto' takes its form from the optimizer: call loss(model, optimizer), or "
            "give penalty='proximal' or 'loss'."
        )
    moments = {"betas", "alpha", "rho", "initial_accumulator_value"}
    divides = all(
        "eps" in group and moments & group.keys() and not group.get("maximize")
        for group in optimizer.param_groups
    )
    return "loss" if divides else "proximal"


def check_optimizer(optimizer: Optimizer, form: str, holder: str) -> None:
    """Raise ValueError for an optimiser with which a penalty of this form has no meaning.

    :param optimizer: of the training.
    :param form: ``"proximal"`` needs learning rates; ``"loss"`` an optimiser that minimises.
    :param holder: who has the penalty, for the message.
    """
    for number, group in enumerate(optimizer.param_groups):
        if form == "proximal" and not isinstance(group.get("lr"), int | float | Tensor):
            raise ValueError(
                f"parameter group {number} of the optimizer has lr={group.get('lr')!r}, but a "
                f"proximal step needs a learning rate; give {holder} penalty='loss'."
            )
        if form == "loss" and group.get("maximize"):
            raise ValueError(
                "the optimizer has maximize=True, so a penalty in the loss would drive weights "
                f"away from where they are to stay; give {holder} penalty='proximal'."
            )


def diverged(what: str, form: str, holder: Any) -> NonFiniteLossError:
    """Return the error of something that is not finite, with its likely cause.

    :param what: that is not finite.
    :param form: of the penalty.
    :param holder: a :class:`~avalanche_cetl.allocation.penalty.WeightPenalty`.
    """
    cause = "lower the learning rate, or normalise the input"
    if holder.store.quadratic.importance and form != "proximal":
        cause = (
            f"dwa_lambda={holder.dwa_lambda} with penalty={holder.penalty!r} diverges in the loss "
            "where learning rate times dwa_lambda times importance is more than 2: use "
            "penalty='proximal', lower dwa_lambda or lower the learning rate"
        )
    return NonFiniteLossError(f"{what} became NaN or infinite; {cause}.")


#: The name of :class:`QuadraticPenalty` in version 0.2.
Pull = QuadraticPenalty
