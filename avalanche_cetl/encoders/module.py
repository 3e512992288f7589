"""Any torch module as the frozen source network S."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_cetl.common.caches import copied
from avalanche_cetl.common.hooks import Kept, Ran, Values, watched
from avalanche_cetl.common.picks import Output, check_output, described, pick
from avalanche_cetl.common.seeds import seeded
from avalanche_cetl.common.state import state_kept
from avalanche_cetl.common.tensors import own_copy
from avalanche_cetl.common.warning import warn_caller
from avalanche_cetl.encoders.base import Encoder, in_float32, like_network
from avalanche_cetl.encoders.fingerprint import Fingerprint
from avalanche_cetl.encoders.scores import Scores


class ModuleEncoder(Encoder):
    """Any torch module as a frozen source network.

    The module is copied, so training the original later does not change the encoder. It may
    compute in half or double precision, be quantised, or be scripted (``torch.jit``): images are
    cast to the type of its weights, and features and logits are float32. Bytes (uint8) become
    floats in [0, 1] unless ``transform`` reads them itself; floats are taken as they are.

    :param module: a network; its own device and dtype are kept.
    :param layer: name of the layer whose output is the feature, flattened to one vector an
        image; ``""`` for the module's own output. Default: what the last linear layer reads
        (pre-logits): the one whose output the module's (picked) output is, or else the last that
        runs; of a module that gives several parts, the last one registered. Inside a scripted
        module no layer can be named.
    :param input_shape: shape of one input, ``(C, H, W)``; one forward pass finds ``dim``. The
        module gets images as they are given: others than of this size (fully convolutional
        networks read them) bring one warning. Nothing is resized without a ``transform``.
    :param transform: applied to a batch of images before the module, e.g. a resize.
    :param output: where the module gives a dict, a tuple or an object: the key, index or name of
        its logits ``(N, K)``, or a callable that picks them. Default: its output is the tensor.
    :ivar num_classes: width of the module's (picked) output if that is ``(N, K)``, else None.
    :raises ValueError: when there is no such layer, it does not run or gives no tensor, or the
        module does not run on ``input_shape`` or has no such ``output``; and, where no layer is
        named, when its output is not computed from what its last linear layer gives alone, as in
        a backbone without classifier.
    :raises TypeError: when ``module`` is no torch module, or for another kind of ``output``.
    """

    _warned = False
    _may_write = False  # neither transform nor module gets the caller's tensor

    def __init__(
        self,
        module: nn.Module,
        layer: str | None = None,
        *,
        input_shape: Sequence[int],
        transform: Callable[[Tensor], Tensor] | None = None,
        output: Output | None = None,
    ):
        super().__init__()
        check_output(output)
        if not isinstance(module, nn.Module):
            raise TypeError(f"ModuleEncoder needs a torch module, got {type(module).__name__}.")
        with torch.no_grad():  # otherwise copies of scripted weights are no leaves
            self.module = copied(module)
        self.transform, self.output = transform, output
        self.freeze()
        layers = dict(self.module.named_modules())
        linear = {name: m for name, m in layers.items() if is_linear(m)}
        names = [name for name in layers if name]
        if layer is None and not linear:
            raise ValueError(
                "the module has no linear layer to read features before; name the layer that "
                f"gives them with layer=, or say layer='' for its output. It has {names}."
            )
        if layer is not None and layer not in layers:
            raise ValueError(f"layer={layer!r} is not in the module; it has {names}.")
        if layer and isinstance(layers[layer], torch.jit.ScriptModule):
            raise ValueError(
                f"layer={layer!r} is inside a scripted module, whose layers cannot be read one by "
                "one. Give the module as it was before torch.jit, or script one whose output is "
                "the feature, and say layer=''."
            )
        self.layer = layer
        self._classifier = list(linear)[-1] if linear else ""
        self._by_place = self._classifier
        like = next(self.module.parameters(), torch.zeros(0))
        # Noise: of a black image the features may be 0, and then many a function of the last
        # layer's output (tanh, a scale) would pass for that output itself.
        noise = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(0))
        images = noise.to(like.device)
        self._size: tuple[int, ...] | None = None  # of the images that the module reads
        try:
            if layer is None:
                features, found = self._find_classifier(images, linear)
            else:
                features, found = self._run(self.preprocess(images))
        except (RuntimeError, TypeError, NotImplementedError) as problem:
            raise ValueError(
                f"the module does not run on images of input_shape={tuple(input_shape)}: {problem}"
            ) from problem
        self.dim = features.flatten(1).shape[1]
        self._gives = described(found)
        flat = isinstance(found, Tensor) and found.dim() == 2
        self.num_classes = found.shape[1] if flat else None
        self._outputs = Scores("the source network")
        self._ends_in_classifier = False
        if flat and layer is None and features.dim() == 2 and not features.is_quantized:
            last = layers[self._classifier]
            weight = getattr(last, "weight", None)  # a method of quantised layers
            reads = weight.shape[1] if isinstance(weight, Tensor) else self.dim
            self._ends_in_classifier = reads == self.dim and torch.equal(last(features), found)

    def extra_repr(self) -> str:
        """Return the layer's name, for ``print(model)`` and the fingerprint."""
        # Of a named layer, the width too: a fingerprint apart from those of versions that kept
        # what the next layer made of its output, so that no stored feature is taken from them.
        about = f"layer={self.layer!r}" + (f", dim={self.dim}" if self.layer else "")
        # And of a classifier that is not the last one registered, which those versions took.
        about += f", before={self._classifier!r}" if self._classifier != self._by_place else ""
        return about if self.output is None else f"{about}, output={self.output!r}"

    def fingerprint(self) -> str:
        """Return a SHA-256 over module, layer and transform (by code and attributes)."""
        own = Fingerprint().text(super().fingerprint()).value(self.transform)
        return (own if self.output is None else own.value(self.output)).hexdigest()

    def preprocess(self, x: Tensor) -> Tensor:
        """Apply the transform given at construction."""
        return self.transform(own_copy(x)) if self.transform is not None else x

    def encode(self, x: Tensor) -> Tensor:
        """Return the layer's output, flattened, in float32."""
        return in_float32(self._run(x)[0]).flatten(1)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the module's own output ``(N, num_classes)``, in float32; of probabilities log p.

        See :class:`~avalanche_cetl.encoders.scores.Scores`.
        """
        if self.num_classes is None:
            return super().logits(x)
        return self._outputs.read(self._classified, self.preprocess(x))

    def _classified(self, x: Tensor) -> Tensor:
        return in_float32(self._picked(self.module(self._read(x))))

    @property
    def no_logits(self) -> str:
        """Return why S gives no logits: what the module gives in their place."""
        if self.num_classes is not None:
            return super().no_logits
        return (
            f"the source network gives {self._gives}, and no logits (N, K): say where they are "
            "with ModuleEncoder(..., output=), a key, an index, an attribute's name or a callable, "
            "or give a module with a classifier."
        )

    @property
    def classifies_features(self) -> bool:
        """Whether the features are what the last linear layer reads, and its output the module's.

        Found by trying at construction.
        """
        return self._ends_in_classifier

    @torch.no_grad()
    def classify(self, features: Tensor) -> Tensor:
        """Return the module's output from what its last linear layer reads, ``(N, dim)``."""
        if not self.classifies_features:
            return super().classify(features)
        layer = dict(self.module.named_modules())[self._classifier]
        like = next(layer.parameters(), None)  # a quantised layer has none
        return in_float32(layer(features.float() if like is None else features.to(like)))

    def _read(self, x: Tensor) -> Tensor:
        """Return a copy of preprocessed images, in the type that the module reads."""
        size = tuple(x.shape[1:])
        self._size = self._size or size
        if size != self._size and not self._warned:
            self._warned = True
            warn_caller(
                f"the source network is given images of shape {size}, and was built for "
                f"{self._size}; it reads them as they are. Resize them with ModuleEncoder(..., "
                "transform=), or build it with the input_shape= of the images. This is said once.",
                RuntimeWarning,
            )
        read = like_network(x, self.module)
        return own_copy(x) if read is x else read

    def _picked(self, given: Any) -> Any:
        """Return the part of the module's output that ``output`` says."""
        try:
            found = pick(given, self.output)
        except (LookupError, TypeError, AttributeError) as problem:
            raise ValueError(
                f"output={self.output!r} does not pick a tensor out of what the module gives, "
                f"{described(given)}: {type(problem).__name__}: {problem}"
            ) from problem
        if self.output is not None and not isinstance(found, Tensor):
            raise ValueError(
                f"output={self.output!r} picks {described(found)}, no tensor, out of what the "
                f"module gives, {described(given)}."
            )
        return found

    @torch.no_grad()
    def _run(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the layer's output as it was before later layers ran, and the module's."""
        x = self._read(x)
        if self.layer == "":
            output = self._picked(self.module(x))
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"layer='': the module gives {described(output)}, no tensor; pick one with "
                    "output=, or name a layer."
                )
            return output, output
        layers = dict(self.module.named_modules())
        if self.layer is None:
            layer = layers[self._classifier]
            with _input_of(layer) as kept:
                output = self._picked(self.module(x))
            return _latest(kept, layer, len(x)), output
        what = f"layer={self.layer!r}"
        with Kept(layers[self.layer], what) as named:
            output = self._picked(self.module(x))
        return named.latest(f"{what} did not run in the module's forward pass."), output

    @torch.no_grad()
    def _find_classifier(
        self, images: Tensor, linear: Mapping[str, nn.Module]
    ) -> tuple[Tensor, Any]:
        """Find the last linear layer in one forward pass; return what it reads, and the output."""
        names, ran = {layer: name for name, layer in linear.items()}, Ran()
        plain = [m for m in linear.values() if not isinstance(m, torch.jit.ScriptModule)]
        plain += [m for m in self.module.modules() if isinstance(m, nn.MultiheadAttention)]
        with ExitStack() as stack:
            kept = {m: stack.enter_context(_input_of(m, ran.see)) for m in names}
            stack.enter_context(watched(plain, ran.see))
            x = self._read(self.preprocess(images))
            output = self._picked(self.module(x))
        # A module that gives several parts may run other heads after its classifier.
        alone = isinstance(output, Tensor) and self.output is None
        layer = ran.last(output) if alone else ran.giving(output)
        layer = layer or linear[self._by_place]
        self._classifier = names[layer]
        features = _latest(kept[layer], layer, len(x))
        if alone and ran.giving(output) is None:
            # With others that give as much as the module, as two whose logits are averaged.
            heads = {
                m: given
                for m, given in ran.runs
                if m is layer
                or (isinstance(given, Tensor) and given.shape == output.shape and output.dim() == 2)
            }
            self._check_heads(images, heads, output)
        return features, output

    def _check_heads(self, images: Tensor, heads: Mapping[nn.Module, Any], output: Tensor) -> None:
        """Raise ValueError unless the output depends on the images by way of some layers alone.

        Where these give what they gave for the images, others have to bring the same output.
        """
        if not all(isinstance(given, Tensor) for given in heads.values()):
            return
        scripted = [m for m in heads if isinstance(m, torch.jit.ScriptModule)]
        plain = [m for m in heads if m not in scripted]
        given: dict[nn.Module, list[Tensor]] = {m: [] for m in heads}

        def keep(layer: nn.Module, output: Tensor) -> None:
            given[layer].append(output.clone())

        with state_kept(self.module):
            with ExitStack() as stack, seeded("heads"):
                stack.enter_context(watched(plain, keep))
                for script in scripted:
                    stack.enter_context(LinearInput(script, keep))
                first = self._picked(self.module(self._read(self.preprocess(images))))
            again = {m: iter(values) for m, values in given.items()}
            with ExitStack() as stack, seeded("heads"):
                for m in plain:
                    hook = m.register_forward_hook(lambda m, *_: next(again[m], None))
                    stack.callback(hook.remove)
                for script in scripted:
                    stack.enter_context(LinearInput(script, again=again[script]))
                second = self._picked(self.module(self._read(self.preprocess(1 - images))))
        if not torch.allclose(in_float32(first), in_float32(second), rtol=1e-4, equal_nan=True):
            raise ValueError(
                f"the module's output {tuple(output.shape)} is not computed from what its last "
                f"linear layer {self._classifier!r} gives alone, so that is no classifier. Say "
                "layer='' for the module's output, or name the layer that gives the features with "
                "layer=."
            )


def _input_of(
    layer: nn.Module, see: Callable[[nn.Module, Any], None] | None = None
) -> LinearInput | Kept:
    """Return what keeps a linear layer's input; inside a script it also tells when it has run."""
    if isinstance(layer, torch.jit.ScriptModule):
        return LinearInput(layer, see)
    return Kept(layer, "the last linear layer", reads=True)


def _latest(kept: Values, layer: nn.Module, rows: int) -> Tensor:
    found = kept.latest("the last linear layer did not run in the module's forward pass.")
    # The product of a scripted layer reads a matrix: positions of an image row by row.
    return found.reshape(rows, -1) if isinstance(layer, torch.jit.ScriptModule) else found


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear one: plain, quantised, or as TorchScript holds it."""
    if isinstance(layer, torch.jit.ScriptModule):
        name = str(getattr(layer, "original_name", ""))
        return name.endswith("Linear") and isinstance(getattr(layer, "weight", None), Tensor)
    if type(layer).__module__.startswith("torch.ao."):
        return hasattr(layer, "in_features") and hasattr(layer, "out_features")
    return isinstance(layer, nn.Linear)


class LinearInput(Values, TorchDispatchMode):
    """Copies of what the product with one linear layer's weight reads, while the block runs.

    No hook reaches a layer inside a scripted network, whose forward pass does not run in Python;
    but every operator passes through this mode. The layer's product is the one with the layer's
    own weight, which is found by its place in memory, also after transposes and casts.

    :param layer: a linear layer with a weight.
    :param see: gets the layer and its product, right after it was computed.
    :param again: products to be given in the place of those that are computed.
    :ivar values: one tensor for each time that the layer ran, ``(rows, in_features)``.
    """

    def __init__(
        self,
        layer: nn.Module,
        see: Callable[[nn.Module, Any], None] | None = None,
        again: Iterator[Tensor] | None = None,
    ):
        super().__init__()  # type: ignore[no-untyped-call]
        self._layer, self._see, self._again = layer, see, again
        self.values: list[Tensor] = []
        # Tensors, not addresses alone: memory that were freed would be given to another.
        own = (getattr(layer, name, None) for name in ("weight", "bias"))
        self._all: list[Tensor] = [tensor for tensor in own if isinstance(tensor, Tensor)]
        self._weights = self._all[:1]

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator, and keep its input if it is the layer's product."""
        found = [value for value in args if isinstance(value, Tensor)]
        others = [value for value in found if not _among(value, self._all)]
        reads_weight = any(_among(value, self._weights) for value in found)
        if reads_weight and others:
            self.values.append(others[0].clone())
        result = function(*args, **(kwargs or {}))
        if reads_weight and others and self._see is not None:
            self._see(self._layer, result)
        if reads_weight and others and self._again is not None:
            return next(self._again, result)
        if found and not others and isinstance(result, Tensor):
            (self._weights if reads_weight else self._all).append(result)
            self._all.append(result)
        return result


def _among(value: Tensor, known: list[Tensor]) -> bool:
    return any(_address(value) == _address(tensor) for tensor in known)


def _address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
