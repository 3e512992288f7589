"""The coupled network of Fig. 1: source S, shared decoder T1 and target T2 in one module."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_cetl.common.modes import evaluation_mode
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.encoders.base import Encoder, check_frozen
from avalanche_cetl.models.decoders import ReversedDecoder, source_adapter, target_adapter
from avalanche_cetl.models.targets import Target, as_target, reads_task_labels
from avalanche_cetl.models.unpool import Upsampling


class Outputs(NamedTuple):
    """The outputs of one forward pass of the coupled network; None for those not asked for."""

    source_reconstruction: Tensor | None
    target_reconstruction: Tensor | None
    logits: Tensor | tuple[Tensor, ...] | None


class CoupledModel(nn.Module):
    """S, T1 and T2 as one module; its forward pass is T2's, so it is a classifier to Avalanche.

    S is frozen: it stays in eval mode (``train()`` changes only T1 and T2), its parameters require
    no gradient, and the state dict leaves it out. T1 consists of the decoder and one linear
    adapter per encoder; T2's adapter is the identity when the widths agree.

    :param source: a frozen :class:`~avalanche_cetl.encoders.Encoder`, e.g. ``TimmEncoder`` or
        ``ModuleEncoder``; None for a model without source network (no L_rs).
    :param decoder: T1: maps codes ``(N, decoder.code_dim)`` to images; see
        :class:`ReversedDecoder`. A module without ``code_dim`` reads T2's width.
    :param target: T2: any classifier that :func:`as_target` takes.
    :param input_shape: ``(C, H, W)``; default: the decoder's.
    :raises TypeError: when ``source`` is no encoder.
    :raises ValueError: when the source has trainable parameters, or shapes do not match.
    """

    #: What :meth:`build` makes for a target with heads by task.
    _with_task_labels: type[CoupledModel]

    def __init_subclass__(cls, *, takes_task_labels: bool = False, **kwargs: Any) -> None:
        """Register a subclass as what :meth:`build` makes for a target with heads by task.

        That class inherits from Avalanche, which this room does not import.
        """
        super().__init_subclass__(**kwargs)
        if takes_task_labels:
            CoupledModel._with_task_labels = cls

    def __init__(
        self,
        source: nn.Module | None,
        decoder: nn.Module,
        target: nn.Module,
        input_shape: Sequence[int] | None = None,
    ):
        super().__init__()
        if isinstance(source, Encoder):
            _check_encoder(source)
        elif source is not None and not (isinstance(source, nn.Module) and hasattr(source, "dim")):
            raise TypeError(
                f"source has to be an encoder, got {type(source).__name__}; wrap a module as "
                "ModuleEncoder(module), or use TimmEncoder(name)."
            )
        if source is not None:
            check_frozen(source)
        shape = input_shape if input_shape is not None else getattr(decoder, "input_shape", None)
        if shape is None:
            raise ValueError("give input_shape=(C, H, W): the decoder does not tell it.")
        self.input_shape = tuple(int(size) for size in shape)
        self.target: Target = as_target(target)
        if self.target.heads_by_task and not reads_task_labels(self):
            raise TypeError(
                "the target has heads by task, so the model has to take task labels: use "
                "CoupledModel.build, or MultiTaskCoupledModel."
            )
        self.code_dim, self.num_classes = self.target.measure(self.input_shape)
        width = getattr(decoder, "code_dim", self.code_dim)
        self.decoder = decoder
        self.target_adapter = target_adapter(self.code_dim, width)
        self.source_adapter: nn.Module | None = None
        self.source = source
        if source is not None:
            source.eval()
            dim = int(source.dim)  # type: ignore[arg-type]
            self.source_adapter = source_adapter(dim, width)
        self.register_load_state_dict_post_hook(_forgive_source)  # type: ignore[no-untyped-call]
        like = next(self.target.parameters(), None)
        if like is not None:
            self.to(like.device)
        self._check_shapes()

    @classmethod
    def build(
        cls,
        source: nn.Module | None,
        target: nn.Module | str,
        input_shape: Sequence[int],
        *,
        code: str | None = None,
        unpool: Upsampling = "nearest",
    ) -> CoupledModel:
        """Return S and T2 coupled by a decoder and adapters that are made for them.

        :param source: the frozen encoder S, or None.
        :param target: T2: a classifier, or a timm model's name.
        :param input_shape: shape of T2's input, ``(C, H, W)``.
        :param code: T2's code layer, see :func:`as_target`.
        :param unpool: ``"nearest"`` or ``"zeros"``.
        :return: the model, all of it on the target's device; a :class:`MultiTaskCoupledModel`
            for a target with heads by task.
        """
        wrapped = as_target(target, code)
        if wrapped.heads_by_task and cls is CoupledModel:
            cls = CoupledModel._with_task_labels
        return cls(source, ReversedDecoder(wrapped, input_shape, unpool), wrapped)

    def _check_shapes(self) -> None:
        like = next(self.target.parameters())
        zeros = torch.zeros(2, *self.input_shape).to(like)
        with evaluation_mode(self), torch.no_grad():
            images = self.reconstruct_target(zeros)
            # This package's encoders, and those derived from them, have measured their features.
            kinds = type(self.source).__mro__
            ours = {kind for kind in kinds if kind.__module__.startswith("avalanche_cetl.")}
            if self.source is not None and ours <= {Encoder}:
                self._check_features(self.source_features(zeros), len(zeros))
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"the decoder writes {tuple(images.shape[1:])}, but the input's shape is "
                f"{self.input_shape}."
            )

    def _check_features(self, features: Tensor, images: int) -> None:
        kind, dim = type(self.source).__name__, self.source.dim  # type: ignore[union-attr]
        if len(features) != images:
            raise ValueError(
                f"{kind} gives {len(features)} rows of features for {images} images: one for each."
            )
        if features.shape[1:] != (dim,):
            raise ValueError(
                f"{kind}.dim is {dim}, but it gives features {tuple(features.shape)} for "
                f"{images} images; set dim to their number for one image."
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return T2's class logits ``(N, num_classes)``."""
        result: Tensor = self.target(x)
        return result

    def reconstruct_source(
        self, x: Tensor | None = None, *, features: Tensor | None = None
    ) -> Tensor:
        """Return T1(S(x)), shape ``(N, *input_shape)``, from images or from S's features.

        :param x: images ``(N, C, H, W)``; read only when ``features`` is None.
        :param features: S's raw (not standardised) features ``(N, source.dim)``.
        :raises ValueError: without source network, or when neither is given.
        """
        result: Tensor = self.decoder(self.source_code(x, features=features))
        return result

    def source_features(self, x: Tensor) -> Tensor:
        """Return S's raw features ``(N, source.dim)`` of images, which stay as they are.

        :raises ValueError: without source network.
        """
        if self.source is None:
            raise ValueError("this model has no source network, so there are no source features.")
        # An Encoder sees to it itself.
        result: Tensor = self.source(x if isinstance(self.source, Encoder) else own_copy(x))
        return result

    def source_code(self, x: Tensor | None = None, *, features: Tensor | None = None) -> Tensor:
        """Return S's code as T1 reads it, ``(N, D)``: standardised and adapted."""
        if self.source is None or self.source_adapter is None:
            raise ValueError("this model has no source network, so there is no T1(S(x)).")
        if features is None:
            if x is None:
                raise ValueError("give images x or source features=.")
            features = self.source_features(x)
        result: Tensor = self.source_adapter(features)
        return result

    def target_code(self, x: Tensor, task_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return T2's code as T1 reads it, ``(N, D)``, and T2's logits, from one pass.

        :param x: images ``(N, C, H, W)``.
        :param task_labels: ``(N,)``, for a T2 with heads by task; None: any head, for the code.
        """
        code, logits = self.target.encode(x, task_labels)
        return self.target_adapter(code), logits

    def reconstruct_target(self, x: Tensor) -> Tensor:
        """Return T1(T2(x)), shape ``(N, *input_shape)``."""
        return self.decode_target(x)[0]

    def decode_target(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return T1(T2(x)) and T2's logits, from one pass through T2."""
        code, logits = self.target_code(x)
        return self.decoder(code), logits

    @torch.no_grad()
    def fit_source_statistics(self, features: Tensor) -> None:
        """Fit the standardisation of S's features on the target training data's features."""
        if self.source_adapter is None:
            raise ValueError("this model has no source network.")
        standardize = self.source_adapter[0]  # type: ignore[index]
        standardize.fit(features)

    @property
    def source_statistics_fitted(self) -> bool:
        """Whether S's features are standardised already (True without source network)."""
        return self.source_adapter is None or bool(self.source_adapter[0].fitted)  # type: ignore[index]

    def decoder_parameters(self) -> dict[str, nn.Parameter]:
        """Return T1's parameters (decoder and adapters), keyed as ``named_parameters()``."""
        return self._parameters_of("decoder", "source_adapter", "target_adapter")

    def target_parameters(self) -> dict[str, nn.Parameter]:
        """Return T2's parameters, keyed as ``named_parameters()``."""
        return self._parameters_of("target")

    def _parameters_of(self, *parts: str) -> dict[str, nn.Parameter]:
        """Return the parameters of some parts, without a look at S's: it may be large."""
        found: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for part, module in self.named_children():
            if part == "source":
                continue
            for name, parameter in module.named_parameters(prefix=part):
                if id(parameter) in seen:  # it goes by its first name
                    continue
                seen.add(id(parameter))
                if part in parts:
                    found[name] = parameter
        return found

    def train(self, mode: bool = True) -> CoupledModel:
        """Set the mode of T1 and T2; S stays in eval mode."""
        super().train(mode)
        if self.source is not None:
            self.source.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state as every module does, but without S's weights."""
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        for name in [name for name in state if name.startswith(f"{prefix}source.")]:
            del state[name]
        return state


def _check_encoder(source: Encoder) -> None:
    """Raise an error where a user's encoder has no number of features, or a wrong one."""
    kind, dim = type(source).__name__, getattr(source, "dim", None)
    if dim is None:
        raise TypeError(f"{kind} has no dim: set it in __init__, to the number of its features.")
    if isinstance(dim, bool) or not isinstance(dim, Integral) or dim < 1:
        raise ValueError(f"{kind}.dim is {dim!r}: an int >= 1, the number of its features.")


def _forgive_source(module: nn.Module, incompatible: Any) -> None:
    # Runs for the module itself and, in a larger model, with that model's list of names.
    missing = incompatible.missing_keys
    own = [name for name, _ in module.named_parameters()] + [n for n, _ in module.named_buffers()]
    source = [name for name in own if name.startswith("source.")]
    missing[:] = [name for name in missing if not any(name.endswith(s) for s in source)]


class TargetTasks(nn.Module):
    """A view of T1 and T2 for importance passes: ``(features, x) -> Outputs``.

    Shares the coupled model's parameters under the same names and leaves S out, so that
    its gradients are those of the coupled model.

    :param model: the coupled model.
    :param outputs: which outputs to compute, of ``source``, ``target`` and ``logits``.
    :param heads: for a T2 with heads by task, the tasks whose logits to compute, as a tuple.
    """

    def __init__(
        self,
        model: CoupledModel,
        outputs: Sequence[str] = ("source", "target", "logits"),
        heads: Sequence[int] = (),
    ):
        super().__init__()
        self.decoder = model.decoder
        self.source_adapter = model.source_adapter
        self.target_adapter = model.target_adapter
        self.target = model.target
        self.outputs, self.heads = tuple(outputs), tuple(heads)

    def forward(self, features: Tensor, x: Tensor) -> Outputs:
        """Return reconstructions and logits of images ``(N, C, H, W)`` with S's raw features."""
        source = target = None
        logits: Tensor | tuple[Tensor, ...] | None = None
        if "source" in self.outputs:
            source = self.decoder(self.source_adapter(features))  # type: ignore[misc]
        if "target" in self.outputs:
            code, logits = self.target.encode(x)
            target = self.decoder(self.target_adapter(code))
        elif "logits" in self.outputs and not self.heads:
            logits = self.target(x)
        if "logits" in self.outputs and self.heads:
            tasks = [torch.full((len(x),), task, device=x.device) for task in self.heads]
            logits = tuple(self.target(x, labels) for labels in tasks)
        return Outputs(source, target, logits)
