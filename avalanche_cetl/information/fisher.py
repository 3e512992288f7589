"""Per-sample squared gradients and their mean: the diagonal Fisher information.

For one sample ``x`` and one weight ``i`` the paper's random variable is
``F_i(x) = (d log p(. | x, theta) / d theta_i) ** 2``; the diagonal Fisher
information is its mean over samples (Kirkpatrick et al. 2017, and section 3.2
of the CETL paper). The gradient of every sample is squared on its own: the
squared gradient of a mini-batch mean is a different, much smaller quantity.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

logger = logging.getLogger(__name__)

#: ``loss(outputs, targets)`` (or ``loss(outputs)`` when there are no targets):
#: a batch of outputs in, one loss per sample out, shape ``(N,)``.
Loss = Callable[..., Tensor]
LossName = Literal["sampled", "empirical"]
Likelihood = Literal["categorical", "gaussian"]

DEFAULT_CHUNK_BYTES = 256 * 2**20


def negative_log_likelihood(likelihood: str) -> Loss:
    """Give the per-sample negative log likelihood of a network's output.

    :param likelihood: ``"categorical"``: cross entropy of logits ``(N, K)`` with
        class indices ``(N,)``. ``"gaussian"``: unit-variance Gaussian,
        ``1/2 sum (output - target)^2``, *summed* over all dimensions but the first.
    :return: a loss ``(outputs, targets) -> Tensor of shape (N,)``.
    :raises ValueError: for another name.
    """
    if likelihood == "categorical":
        return _categorical_nll
    if likelihood == "gaussian":
        return _gaussian_nll
    raise ValueError(
        f"likelihood={likelihood!r} is not known. Allowed: 'categorical' (class logits) "
        "or 'gaussian' (reconstructions)."
    )


def _categorical_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _gaussian_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).flatten(1).square().sum(1)


@torch.no_grad()
def sample_targets(
    outputs: Tensor, likelihood: str, generator: torch.Generator | None = None
) -> Tensor:
    """Draw one target per sample from the model's own predictive distribution.

    :param outputs: logits ``(N, K)`` or reconstructions ``(N, ...)``.
    :param likelihood: ``"categorical"`` draws labels from the softmax,
        ``"gaussian"`` adds unit-variance noise to the output.
    :param generator: a CPU generator; the draw happens on the CPU, so that the
        same seed gives the same targets on every device.
    :return: labels ``(N,)`` (int64), or noisy reconstructions shaped as ``outputs``.
    :raises ValueError: for another likelihood.
    """
    if likelihood == "categorical":
        probabilities = outputs.detach().float().softmax(-1).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        return drawn.to(outputs.device)
    if likelihood == "gaussian":
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float32)
        return outputs.detach() + noise.to(outputs)
    negative_log_likelihood(likelihood)  # raises
    raise AssertionError


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, so that BatchNorm does not mix samples; restore every module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def as_tuple(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Give the positional inputs of a model, all with the same first dimension N.

    :raises ValueError: when there are no samples, or lengths differ.
    """
    parts = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    lengths = {len(part) for part in parts}
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
    unknown = [name for name in params if name not in named]
    if unknown:
        raise ValueError(f"params {unknown} are not among the model's {sorted(named)}.")
    return {name: named[name] for name in params}


def resolve_loss(
    loss: Loss | LossName,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    targets: Any,
    likelihood: str,
    generator: torch.Generator | None,
) -> tuple[Loss, Any]:
    """Turn ``"sampled"``, ``"empirical"`` or a callable into a loss and its targets."""
    if callable(loss):
        return loss, targets
    if loss == "sampled":
        with torch.no_grad():
            outputs = model(*inputs)
        return negative_log_likelihood(likelihood), sample_targets(outputs, likelihood, generator)
    if loss == "empirical":
        if targets is None:
            raise ValueError("loss='empirical' needs targets=: labels, or images to reconstruct.")
        return negative_log_likelihood(likelihood), targets
    raise ValueError(
        f"loss={loss!r} is not known. Allowed: 'sampled', 'empirical', or a callable "
        "(outputs, targets) -> one loss per sample."
    )


def per_sample_gradients(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    losses: Sequence[tuple[Loss, Any]],
    params: Mapping[str, Tensor],
    *,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield, chunk by chunk of samples, the per-sample gradients of one or more losses.

    The model is called in whatever mode it is in; callers use :func:`evaluation_mode`.

    :param losses: pairs of a loss and its targets. Targets are a tensor, or a tuple of
        tensors, with N rows, or None.
    :param params: the parameters to differentiate by, keyed as ``named_parameters()``.
    :param chunk_bytes: bound on the memory of the gradients held at once; at least one
        sample is always taken.
    :return: an iterator over chunks; per loss a dict of tensors ``(n, *param.shape)``.
    """
    parts = as_tuple(inputs)
    total = len(parts[0])
    chosen = {name: p.detach() for name, p in params.items()}
    fixed = {n: t.detach() for n, t in model.named_parameters() if n not in chosen}
    fixed |= dict(model.named_buffers())
    row_bytes = sum(p.numel() * p.element_size() for p in chosen.values()) * len(losses)
    size = max(1, min(total, chunk_bytes // max(1, row_bytes)))

    def sample_loss(weights: dict[str, Tensor], loss: Loss, sample: Any, target: Any) -> Tensor:
        batch = tuple(part.unsqueeze(0) for part in sample)
        outputs = functional_call(model, fixed | weights, batch)
        if target is None:
            return loss(outputs)[0]
        wanted = _map_tensors(target, lambda t: t.unsqueeze(0))
        return loss(outputs, wanted)[0]

    for start in range(0, total, size):
        rows = slice(start, min(total, start + size))
        samples = tuple(part[rows] for part in parts)
        chunk = []
        for loss, targets in losses:
            wanted = _select(targets, rows)

            def one(sample: Any, target: Any, loss: Loss = loss) -> dict[str, Tensor]:
                return grad(sample_loss)(chosen, loss, sample, target)

            chunk.append(_over_samples(one, samples, wanted))
        yield chunk


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, Tensor):
        return function(value)
    return tuple(_map_tensors(part, function) for part in value)


def _select(value: Any, rows: int | slice) -> Any:
    return _map_tensors(value, lambda t: t[rows])


def _over_samples(one: Callable[..., dict[str, Tensor]], samples: Any, targets: Any) -> Any:
    """Vectorise over samples; a model with an operation vmap cannot batch gets a plain loop."""
    in_dims = (0, None if targets is None else 0)
    try:
        return vmap(one, in_dims=in_dims, randomness="error")(samples, targets)
    except (RuntimeError, NotImplementedError) as problem:
        logger.debug("per-sample gradients fall back to a loop: %s", problem)
    rows = []
    for i in range(len(samples[0])):
        rows.append(one(_select(samples, i), _select(targets, i)))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


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
) -> dict[str, Tensor]:
    """Diagonal Fisher information: the mean over samples of squared per-sample gradients.

    ``F_i = 1/N sum_n (d loss(x_n) / d theta_i)^2`` with ``N = len(inputs)``. It is a mean
    over samples of squares, never the square of a batch mean, and no factor depends on the
    batch or chunk size. The model runs in eval mode and is left as it was found.

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
    :param chunk_bytes: bound on the memory of per-sample gradients held at once.
    :return: dict from parameter name to a tensor of the parameter's shape, values >= 0.
    :raises ValueError: for empty inputs, unknown parameters, losses or likelihoods.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> fisher_information(model, x, loss=lambda out: out.squeeze(1))["weight"]
    tensor([[ 5., 10.]])
    """
    parts = as_tuple(inputs)
    chosen = select_params(model, params)
    with evaluation_mode(model):
        pair = resolve_loss(loss, model, parts, targets, likelihood, generator)
        sums = {name: torch.zeros_like(p, requires_grad=False) for name, p in chosen.items()}
        for (gradients,) in per_sample_gradients(
            model, parts, [pair], chosen, chunk_bytes=chunk_bytes
        ):
            for name, value in gradients.items():
                sums[name] += value.square().sum(0)
    return {name: value / len(parts[0]) for name, value in sums.items()}
