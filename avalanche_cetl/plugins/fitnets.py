"""FitNetsHints: a hidden layer of T2 towards a hidden layer of S."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models.utils import avalanche_forward
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_cetl.common.batch import Batch
from avalanche_cetl.common.channel_axis import channel_axis, channels_second
from avalanche_cetl.common.hooks import Kept
from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.optimizers import optimizer_like
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.common.validation import order_of_0_2
from avalanche_cetl.encoders import Encoder
from avalanche_cetl.models import CoupledModel
from avalanche_cetl.plugins.base import Strategy, training_of
from avalanche_cetl.plugins.hints import hint_loss
from avalanche_cetl.plugins.losses import AnyRows, DistillationPlugin, Rows


class FitNetsHints(DistillationPlugin):
    """A hidden layer of T2, through a learned regressor, towards a hidden layer of S.

    Romero et al. 2015. The regressor is a 1x1 convolution between feature maps (the larger is
    average-pooled to the size of the smaller), else a linear layer (maps are averaged over
    their positions, tokens over the sequence), whether channels come second or last (Swin). It is
    trained with an optimiser of the same class and settings as the strategy's. FitNets trains the
    hint before the rest; here it is a term beside it, in stage 2 by default.

    :param weight: >= 0.
    :param target_layer: name of T2's guided layer, as in ``target.named_modules()``.
    :param source_layer: name of S's hint layer, as in its network's ``named_modules()``; S then
        runs on every batch. Default: S's features, live or stored.
    :param rows: see :class:`DistillationPlugin`; default: ``"target"``.
    :param source: see :class:`DistillationPlugin`.
    :ivar regressor: the learned layer; None before the first step.
    :raises ValueError: for values out of range; in training for layers that are not there.
    """

    name = "L_fitnet"
    reads_logits = False
    default_rows: AnyRows = "target"

    @order_of_0_2("target_layer", "source_layer", "weight")
    def __init__(
        self,
        weight: float = 1.0,
        *,
        target_layer: str,
        source_layer: str | None = None,
        rows: Rows | None = None,
        source: Encoder | None = None,
    ):
        super().__init__(weight, rows, source)
        self.target_layer, self.source_layer = target_layer, source_layer
        self.regressor: nn.Module | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._template: type | None = None  # whose optimiser it is like
        self._moments: dict[str, Any] | None = None
        self._guided: Kept | None = None
        self._axes: dict[tuple[Any, ...], int] = {}

    # The hooks are there in the stages only: not in copies of the model that others make
    # between epochs (LwF), nor in importance passes.

    def state_dict(self) -> dict[str, Any]:
        """Return the regressor and its moments, for checkpoints."""
        if self.regressor is None:
            return {"regressor": None, "moments": None}
        moments = self._moments if self._optimizer is None else self._optimizer.state_dict()
        return {"regressor": dict(self.regressor.state_dict()), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them; the optimiser follows with the next step."""
        self.regressor, self._optimizer, self._moments = None, None, None
        if state["regressor"] is not None:
            weight = state["regressor"]["weight"]
            self.regressor = _regressor(weight.shape[1], weight.shape[0], weight.dim() == 2)
            self.regressor.to(weight).load_state_dict(state["regressor"])
            self._moments = state["moments"]

    def before_stage(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Listen to T2's layer, in the stages that read it: what is kept holds a graph."""
        if self.rows in training_of(strategy).reads and self.weight:
            self._listen(strategy)

    def after_stage(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Stop listening."""
        self._leave()

    def before_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Listen, in a strategy without stages."""
        if not training_of(strategy).has_stages and self.weight:
            self._listen(strategy)

    def after_training_epoch(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Stop listening, in a strategy without stages."""
        self._leave()

    def _listen(self, strategy: Strategy) -> None:
        self._leave()
        guided = _layer(self._network(strategy), self.target_layer, "target_layer", "T2")
        self._guided = Kept(guided, f"target_layer={self.target_layer!r}", trained=True)

    def _network(self, strategy: Strategy) -> nn.Module:
        """T2 itself, in which its layers have the names that its maker gave them."""
        model = strategy.model
        return model.target.module if isinstance(model, CoupledModel) else model

    def _leave(self) -> None:
        if self._guided is not None:
            self._guided.remove()
        self._guided = None

    def loss(self, strategy: Strategy, batch: Batch) -> Tensor:
        """Return the loss of a mini-batch."""
        # The merged step passes the labelled rows through T2 first, then the target rows.
        assert self._guided is not None
        if not self._guided.values:
            raise ValueError(
                f"target_layer={self.target_layer!r} does not run in T2's forward(); name another."
            )
        output = self._guided.values[-1 if self.rows == "target" else 0]
        if len(output) != len(batch):
            raise ValueError(
                f"target_layer={self.target_layer!r} gave {len(output)} rows for a mini-batch of "
                f"{len(batch)}: FitNetsHints needs a stage that runs T2 on its rows, each once."
            )
        output = self._in_order(output, "target_layer", strategy, batch.images)
        self._forget()
        # Under autocast maps are in half precision; the regressor's weights are not.
        dtype = batch.logits.dtype
        output, hint = _matched(output.to(dtype), self._read_hint(strategy, batch).to(dtype))
        if not training_of(strategy).alone:
            raise ValueError(
                "FitNetsHints trains a regressor of its own, which processes do not share; use "
                "DecoderHints, or one process."
            )
        if self.regressor is None:
            self.regressor = _regressor(output.shape[1], hint.shape[1], output.dim() == 2)
        template = strategy.optimizer
        if self._optimizer is None or self._template is not type(template):
            self._template = type(template)
            self.regressor.to(output)
            group = template.param_groups[0] | {"params": list(self.regressor.parameters())}
            self._optimizer = optimizer_like(template, [group])
            if self._moments is not None:
                self._optimizer.load_state_dict(self._moments)
                self._moments = None
        return hint_loss(self.regressor(output).to(dtype), hint)

    @torch.no_grad()
    def _read_hint(self, strategy: Strategy, batch: Batch) -> Tensor:
        source = self.source(strategy)
        if self.source_layer is None:
            features: Tensor = source(batch.images) if batch.features is None else batch.features
            return features
        inner = getattr(source, "module", source)
        layer = _layer(inner, self.source_layer, "source_layer", "S")
        with Kept(layer, f"source_layer={self.source_layer!r}") as kept:
            source(batch.images)
        if not kept.values:
            raise ValueError(f"source_layer={self.source_layer!r} does not run in S's forward().")
        return self._in_order(kept.values[-1], "source_layer", strategy, batch.images)

    def _in_order(
        self, output: Tensor, argument: str, strategy: Strategy, images: Tensor
    ) -> Tensor:
        """A layer's output with its channels second; found once, on two images in eval mode."""
        if output.dim() not in (3, 4):
            return output
        name = getattr(self, argument)
        key = argument, name, *output.shape[1:]
        if key not in self._axes:
            of_target = argument == "target_layer"
            whole = self._network(strategy) if of_target else self.source(strategy)
            inner = whole if of_target else getattr(whole, "module", whole)
            few, tasks = own_copy(images[:2]), strategy.mbatch[-1][:2]
            # The pass draws nothing that training would have drawn.
            with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(whole):
                layer = inner.get_submodule(name)
                axis = channel_axis(inner, layer, lambda: avalanche_forward(whole, few, tasks))
            if axis is None:
                raise ValueError(
                    f"{argument}={name!r} gives {tuple(output.shape[1:])} for an image, in which "
                    "the channels may be first or last; name another layer, e.g. a convolution or "
                    "a linear layer inside it."
                )
            self._axes[key] = axis
        return channels_second(output, self._axes[key])

    def before_training_iteration(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Forget passes with gradients between two steps, such as those of a measurement."""
        self._forget()

    def before_forward(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Forget the passes that other plugins make at the start of an iteration."""
        super().before_forward(strategy, *args, **kwargs)
        self._forget()

    def after_step(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Train the regressor along with stage 2."""
        self._step(strategy)

    def after_update(self, strategy: Strategy, *args: Any, **kwargs: Any) -> None:
        """Train the regressor along with stage 3, or any other strategy's step."""
        self._step(strategy)

    def _forget(self) -> None:
        if self._guided is not None:
            self._guided.values.clear()

    def _step(self, strategy: Strategy) -> None:
        self._forget()  # a stage may run T2 more often than the loss is asked for
        if self.regressor is None or self._optimizer is None:
            return
        if all(p.grad is None for p in self.regressor.parameters()):
            return
        own = self._optimizer.param_groups[0]
        own.update(strategy.optimizer.param_groups[0] | {"params": own["params"]})
        self._optimizer.step()
        self._optimizer.zero_grad()


def _layer(module: nn.Module, name: str, argument: str, role: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(module.named_modules())
    if not name or name not in layers:
        raise ValueError(
            f"{argument}={name!r} is not in {role}, which has {[n for n in layers if n]}."
        )
    return layers[name]


def _matched(output: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both to maps of one size, or both to vectors."""
    if output.dim() == 4 and hint.dim() == 4:
        sides = zip(output.shape[2:], hint.shape[2:], strict=True)
        size = (min(next(sides)), min(next(sides)))
        return F.adaptive_avg_pool2d(output, size), F.adaptive_avg_pool2d(hint, size)
    return _vector(output), _vector(hint)


def _vector(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2) if x.dim() > 2 else x


def _regressor(width: int, wanted: int, flat: bool) -> nn.Module:
    return nn.Linear(width, wanted) if flat else nn.Conv2d(width, wanted, 1)
