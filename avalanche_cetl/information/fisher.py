"""Per-sample squared gradients and their mean: the diagonal Fisher information.

For one sample ``x`` and one weight ``i`` the paper's random variable is
``F_i(x) = (d log p(. | x, theta) / d theta_i) ** 2``; the diagonal Fisher
information is its mean over samples (Kirkpatrick et al. 2017, and section 3.2
of the CETL paper). The gradient of every sample is squared on its own: the
squared gradient of a mini-batch mean is a different, much smaller quantity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parameter import is_lazy

from avalanche_cetl.common.state import ModelState, state_kept
from avalanche_cetl.information.bundles import Bundle, magnitude
from avalanche_cetl.information.likelihood import (
    BoundLoss,
    Likelihood,
    Loss,
    LossName,
    map_tensors,
)
from avalanche_cetl.information.per_sample import Batch, PerSampleGradients, with_engine
from avalanche_cetl.information.processes import Processes

DEFAULT_CHUNK_BYTES = 512 * 2**20

_SMALL = 2**13


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[ModelState]:
    """Run in eval mode, so that BatchNorm does not mix samples, and leave no trace.

    Every module's mode is restored, and so are buffers and kept values that forward passes write.

    :return: the model's state, to be put back between passes too.
    """
    # Flags alone: a train() of a module's own may do more than set them.
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with state_kept(model) as state:
            yield state
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def gradients_allowed(model: nn.Module) -> Iterator[None]:
    """Leave ``torch.inference_mode`` for a while, in which there are no gradients at all.

    :raises ValueError: when the model was made in that mode: its tensors can have no gradient;
        and when it has lazy layers that were not run yet.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, p in named if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"{lazy[0]!r} has no shape yet ({len(lazy)} such parameters); run the model once on a "
            "batch, so that its lazy layers are made."
        )
    born = [name for name, tensor in named if tensor.is_inference()]
    if born:
        raise ValueError(
            f"{born[0]!r} ({len(born)} tensors in all) was made under torch.inference_mode() and "
            "can have no gradient; make or load the model outside of that mode."
        )
    with torch.inference_mode(False):
        yield


def outside_of_inference(value: Any) -> Any:
    """Return tensors that a backward pass may keep: those of inference mode are copied."""
    return map_tensors(value, lambda t: t.clone() if t.is_inference() else t)


def as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Give the positional inputs of a model, all with the same first dimension N.

    :raises ValueError: when there are no samples, or lengths differ.
    :raises TypeError: for anything but tensors.
    """
    parts = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(parts, tuple | list) or not all(isinstance(p, Tensor) for p in parts):
        raise TypeError(
            "inputs have to be a tensor (N, ...) or a tuple of tensors, got "
            f"{type(inputs).__name__}; torch.as_tensor(...) makes one of an array."
        )
    parts = tuple(parts)
    lengths = {len(part) if part.dim() else 0 for part in parts}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "inputs need the same, non-zero number of samples in their first dimension; "
            f"got {[tuple(part.shape) for part in parts]}."
        )
    return parts


def select_params(
    model: nn.Module, params: Sequence[str] | Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Pick the parameters to measure: those named, or all that require a gradient.

    :param params: names (or a mapping keyed by names) out of ``model.named_parameters()``.
    :raises ValueError: when a name is unknown or nothing is left to measure.
    """
    named: dict[str, Tensor] = dict(model.named_parameters())
    if params is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                "the model has no parameter that requires a gradient, so it has no Fisher "
                "information; name frozen parameters in `params=` to measure them."
            )
        return chosen
    if isinstance(params, str):
        raise TypeError(f"params={params!r} is one name; give a list of names, [{params!r}].")
    unknown = [name for name in params if name not in named]
    if unknown:
        raise ValueError(f"params {unknown} are not among the model's {sorted(named)}.")
    return {name: named[name] for name in params}


def fisher_information(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    loss: Loss | LossName = "sampled",
    params: Sequence[str] | Mapping[str, Tensor] | None = None,
    *,
    targets: Any = None,
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    process_group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Diagonal Fisher information: the mean over samples of squared per-sample gradients.

    ``F_i = 1/N sum_n (d loss(x_n) / d theta_i)^2`` with ``N = len(inputs)``. It is a mean
    over samples of squares, never the square of a batch mean, and no factor depends on the
    batch or chunk size. The model runs in eval mode and is left as it was found; samples
    must not influence one another there.

    The whole batch takes one forward and one backward pass (fewer samples at a time where
    ``chunk_bytes`` would not hold them): Linear, convolution, normalisation, Embedding and
    recurrent layers have closed forms, class tokens and the like one copy per sample, and
    torch.func runs what is left, module by module. What torch.func cannot run takes a plain
    backward pass for each sample; the log says so once. Every route is tried on two samples
    against autograd first, and proven on samples of the batch with the loss itself.

    The model, its buffers and attributes, and the tensors given are as they were afterwards. A
    network that loses the batch axis of a single sample (``squeeze()``) runs it as a pair. Of a
    complex weight the result is the mean of ``|gradient|^2``.

    :param model: any module; called as ``model(*inputs)``.
    :param inputs: a tensor ``(N, ...)``, or a tuple of such tensors.
    :param loss: ``"sampled"`` (true Fisher: targets drawn once from the model's own
        output, see :func:`sample_targets`), ``"empirical"`` (targets given), or a callable
        ``(outputs, targets) -> (N,)`` (``(outputs) -> (N,)`` without targets).
    :param params: names of the parameters to measure; default: all that require a gradient.
    :param targets: labels ``(N,)`` or images ``(N, ...)`` for ``"empirical"``, or whatever
        the callable reads (tensors with N rows).
    :param likelihood: how ``"sampled"`` and ``"empirical"`` read the output:
        ``"categorical"`` logits, or ``"gaussian"`` reconstructions with unit variance
        (squared error halved and summed over pixels).
    :param generator: CPU generator of the sampled targets.
    :param chunk_bytes: bound on the memory of activations and per-sample gradients held at
        once, as far as a single sample fits into it.
    :param process_group: of torch.distributed: every process gives samples of its own (the
        model and ``params`` are the same), the mean is over all of them and the same
        everywhere. A process that fails stops the others. Default: this process alone.
    :return: dict from parameter name to a tensor of the parameter's shape, values >= 0.
    :raises ValueError: for empty inputs, unknown parameters, losses or likelihoods.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> fisher_information(model, x, loss=lambda out: out.squeeze(1))["weight"]
    tensor([[ 5., 10.]])
    """
    with gradients_allowed(model), evaluation_mode(model) as state:
        parts = outside_of_inference(as_tuple(inputs))
        chosen = select_params(model, params)
        targets = outside_of_inference(targets)
        bound = BoundLoss(loss, targets, len(parts[0]), likelihood, generator)
        return with_engine(
            lambda engine: restored(engine, square_means(engine).fisher[0]),
            model,
            parts,
            [bound],
            chosen,
            chunk_bytes,
            Processes(process_group),
            state,
        )


@dataclass
class SquareMeans:
    """Means over samples of squared gradients, per loss, in the parameters' layouts.

    :ivar fisher: per loss, by name; parameters that no loss reaches are missing.
    :ivar factors: where each gradient is one outer product, by loss and name the mean squares
        of the left and right factor.
    :ivar norms: per loss, every sample's squared gradient norm over all parameters, ``(N,)``.
    """

    fisher: list[dict[str, Tensor]]
    factors: list[dict[str, tuple[Tensor, Tensor]]]
    norms: list[Tensor]


@torch.no_grad()
def square_means(engine: PerSampleGradients, norms: bool = False) -> SquareMeans:
    """Run over all samples once; see :class:`SquareMeans`. Norms are zeros unless asked for."""
    count = range(len(engine.losses))
    device = engine.inputs[0].device
    result = SquareMeans(
        [{} for _ in count],
        [{} for _ in count],
        [torch.zeros(engine.samples, device=device, dtype=torch.float64) for _ in count],
    )
    for batch in engine.batches():
        rows = slice(batch.start, batch.start + batch.samples)
        for bundle in batch.bundles:
            for k in count:
                if bundle.alive(k):
                    part = result.norms[k][rows] if norms else None
                    _add_squares(result, k, batch, bundle, part)
    sums = []
    for k in count:
        # In the parameters' order: processes may have met their layers in different ones.
        result.fisher[k] = {n: result.fisher[k][n] for n in engine.params if n in result.fisher[k]}
        for name, value in result.fisher[k].items():
            parts = (value, *result.factors[k].get(name, ()))
            sums += [(f"{k} {name}", part) for part in parts]
    engine.meet([(name, value.shape) for name, value in sums])
    engine.processes.add([value for _, value in sums])
    for _, value in sums:
        value /= engine.total
    return result


def _add_squares(
    result: SquareMeans, k: int, batch: Batch, bundle: Bundle, norms: Tensor | None
) -> None:
    """Add a batch's squared gradients to the sums; a sample's own sum goes to ``norms``."""
    fisher, name = result.fisher[k], bundle.names[0]
    factors = bundle.outer(k)
    if factors is not None:
        left, right = factors.left.squeeze(-1).square(), factors.right.squeeze(1).square()
        pair = (left.sum(0), right.sum(0))
        if name in fisher:
            fisher[name] += left.T @ right
            before = result.factors[k][name]
            pair = (pair[0] + before[0], pair[1] + before[1])
        else:
            fisher[name] = left.T @ right
        result.factors[k][name] = pair
        if norms is not None:
            norms += left.sum(1).double() * right.sum(1).double()
        return
    short = bundle.square_sum(k) if norms is None else None
    if short is not None:
        fisher[name] = fisher[name] + short if name in fisher else short
        return
    for rows, part, (gradients,) in batch.pieces(bundle, [k]):
        for name, gradient in gradients.items():
            if name not in fisher:
                fisher[name] = gradient.new_zeros(bundle.layout(name).shape)
            if norms is not None:
                norms[rows] += gradient.flatten(1).square().sum(1).double()
            add_products(fisher[name][part], gradient, gradient)


def add_products(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``(a * b).sum(0)``: in one go, or a sample at a time where one fills the cache."""
    if sums.numel() < _SMALL:
        sums += (a * b).sum(0)
        return
    for one, other in zip(a, b, strict=True):
        sums.addcmul_(one, other)


def restored(engine: PerSampleGradients, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring values in layout into the parameters' shapes; missing ones are zeros."""
    result = {}
    for name, parameter in engine.params.items():
        if name in values:
            value = engine.restore(name, values[name]).reshape(parameter.shape)
            result[name] = value.contiguous()
        else:
            half = parameter.dtype in (torch.float16, torch.bfloat16)
            real = magnitude(parameter.detach())
            result[name] = torch.zeros_like(real, dtype=torch.float32 if half else None)
    return result
