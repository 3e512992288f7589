"""What a network gives: whether a likelihood can read it, and how important it is.

The importance of the outputs asks how far they move when a weight does, whatever they say. For
outputs z(x) of K numbers with the Jacobian J(x) = dz / dtheta it is the diagonal (in any basis) of

    ``M = mean_x 1/K J^T C J``

- **Class logits**: ``C = I - 1 1^T / K`` takes a shift that is common to all logits out, to which a
  softmax is blind. M is the limit, for large tau, of tau^2 times the Fisher information of
  ``softmax(z / tau)``: that of a network which is sure of nothing. The Fisher information itself
  vanishes where the network is sure; this does not.
- **Yes-or-no logits**: ``C = I``, since each has a sigmoid of its own, and a shift that is common
  to all changes every answer. M is 4 / K times the same limit (a sigmoid at 0 has the variance
  1/4).
- **Real values**: ``C = I``. M is the Fisher information of a Gaussian of unit variance, divided
  by K.

It has a unit: ``lambda / 2 dtheta^T M dtheta`` is, to first order in dtheta, ``lambda / 2`` times
the mean squared change of the outputs, for class logits less their own mean; the mean is over
samples and outputs. No label is read or drawn.

Outputs may count with weights ``a``, each with the share ``p_k = a_k / sum_j a_j``: classes that
have not come yet matter less than those that have. For class logits it is then

    ``M = mean_x J^T (diag p - p p^T) J``

of which the above is the case of equal weights, ``p_k = 1 / K``. In the unit, the mean squared
change becomes the variance of the change under p.

``fisher_information`` and ``kronecker_basis`` square the gradients of one number per sample. With
:func:`projected_outputs` that is ``u^T z(x)``, for a vector u drawn for each sample with
``E[u u^T] = diag p - p p^T`` (for other outputs than class logits ``diag p``): unbiased, at the
cost of the sampled Fisher information. With ``s_k = sqrt(p_k)`` and v normal, the vector is
``u = sqrt(r) s * w / |w|``, where ``w = v - (s^T v) s`` for class logits (and v for others) and r
is the rank. That is ``s * w`` without the noise in the length of w: where r = 1 (two classes, one
output) nothing of chance is left, and the estimate is exact. :func:`every_output_vector` has K
vectors for each sample, ``sqrt(p_k) (e_k - p)`` (for others ``sqrt(p_k) e_k``), which together are
exact for every network.

An output of minus infinity, as masks write it for classes that a sample cannot have, is none: it
does not count in K.

Sources: Aljundi et al. 2018 (Memory Aware Synapses) hold what moves the outputs, weight by weight,
by the gradient of their squared norm; Ritter, Botev and Barber 2018 hold weights by Kronecker
factors, of whose eigenbasis George et al. 2018 take the diagonal; van de Ven 2025 compares ways to
compute the Fisher information.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

Likelihood = Literal["categorical", "bernoulli", "gaussian"]


def check_outputs(outputs: Any, likelihood: str) -> Tensor:
    """Return a model's outputs, or raise ValueError when the likelihood cannot read them."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or not outputs.dim():
        kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        kind = f"{outputs.dtype} of shape {kind}" if isinstance(outputs, Tensor) else kind
        raise ValueError(
            f"likelihood={likelihood!r} reads one tensor of real numbers (N, ...), but the model "
            f"gave {kind}. Pick the tensor: output= in GFIPlugin, elsewhere a loss "
            "(outputs, targets) -> (N,) or a module around the model."
        )
    if likelihood == "categorical" and (outputs.dim() != 2 or outputs.shape[1] < 2):
        raise ValueError(
            f"likelihood='categorical' reads class logits (N, K) with K >= 2, but the model gave "
            f"{tuple(outputs.shape)}. For one logit, or several of which each is yes or no, give "
            "likelihood='bernoulli', for real values 'gaussian', for logits in another layout "
            "output= in GFIPlugin, elsewhere a loss (outputs, targets) -> (N,)."
        )
    return outputs


def check_likelihood(likelihood: str) -> None:
    """Raise ValueError for the name of an unknown likelihood."""
    if likelihood not in ("categorical", "bernoulli", "gaussian"):
        raise ValueError(
            f"likelihood={likelihood!r} is not known. Allowed: 'categorical' (class logits), "
            "'bernoulli' (logits of yes or no) or 'gaussian' (reconstructions)."
        )


def projected_outputs(outputs: Tensor, vectors: Tensor) -> Tensor:
    """Compute ``u^T z`` of every sample: a loss whose squared gradients are importance of outputs.

    :param outputs: z, ``(N, ...)``.
    :param vectors: u, of the same shape; outputs with an entry of 0 are not read, and may be
        infinite.
    :return: ``(N,)``, a sum over all outputs of a sample, in float32 at least.
    :raises ValueError: when the shapes differ.

    >>> projected_outputs(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -0.5]]))
    tensor([-0.5000])
    """
    if outputs.shape != vectors.shape:
        raise ValueError(
            f"the vectors have shape {tuple(vectors.shape)}, the model's outputs "
            f"{tuple(outputs.shape)}; sample_output_vectors(outputs) has one entry for each output."
        )
    kind = torch.promote_types(outputs.dtype, torch.float32)
    terms = outputs.to(kind).masked_fill(vectors == 0, 0) * vectors.to(kind)
    return terms.reshape(len(terms), -1).sum(1)


@torch.no_grad()
def sample_output_vectors(
    outputs: Tensor,
    likelihood: Likelihood = "categorical",
    generator: torch.Generator | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Draw one vector per sample, for :func:`projected_outputs`: ``E[u u^T] = diag p - p p^T``.

    Importance of the outputs by weights of their own is
    ``fisher_information(model, x, projected_outputs, targets=sample_output_vectors(model(x),
    weights=a))``, and the same for :func:`kronecker_basis`.

    :param outputs: logits ``(N, K)``, or ``(N, ...)`` for the other likelihoods. Their values are
        not read, but for those of minus infinity.
    :param likelihood: ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``; for the last two
        ``E[u u^T] = diag p``.
    :param generator: a CPU generator; the draw happens on the CPU, so that the same seed gives
        the same vectors on every device.
    :param weights: a, of the outputs of a sample, ``(K,)``, finite and >= 0; None: all are equal.
        Outputs of minus infinity have none.
    :return: shaped and of the type of ``outputs``.
    :raises ValueError: for another likelihood, outputs that it cannot read, or such weights.

    >>> vectors = sample_output_vectors(torch.zeros(1, 2))  # of two classes: exact but for its sign
    >>> vectors.abs()
    tensor([[0.5000, 0.5000]])
    """
    check_likelihood(likelihood)
    check_outputs(outputs, likelihood)
    return vectors_of(outputs, likelihood, normal_like(outputs, len(outputs), generator), weights)


def normal_like(outputs: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
    """Draw a normal vector for each of a number of samples, whatever batches they come in."""
    return torch.randn(samples, *outputs.shape[1:], generator=generator, dtype=torch.float64)


def vectors_of(
    outputs: Tensor, likelihood: str, normal: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return normal vectors as they are drawn for outputs: centred, and of one length."""
    shares = _shares(outputs, weights)
    roots, rank = shares.sqrt(), (shares > 0).double().sum(1, keepdim=True)
    vectors = normal.reshape(len(normal), -1) * (shares > 0)
    if likelihood == "categorical":
        vectors, rank = vectors - (roots * vectors).sum(1, keepdim=True) * roots, rank - 1
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    # Of one output alone, of which a softmax is sure, rounding would be left.
    scale = torch.where(rank > 0, rank.sqrt() / torch.where(length > 0, length, 1), 0)
    return _placed(roots * vectors * scale, outputs)


@torch.no_grad()
def every_output_vector(
    outputs: Tensor, likelihood: Likelihood = "categorical", weights: Tensor | None = None
) -> Tensor:
    """Return vectors that give the importance of the outputs exactly, over repeated samples.

    The mean over the first dimension of ``u u^T`` is ``diag p - p p^T`` (for other outputs than
    class logits ``diag p``). The samples are measured K times, once with each::

        vectors = every_output_vector(model(x))
        repeated = torch.cat([x] * len(vectors))
        fisher_information(model, repeated, projected_outputs, targets=vectors.flatten(0, 1))

    and the same for :func:`kronecker_basis`. That costs K times what one vector per sample costs
    (:func:`sample_output_vectors`).

    :param outputs: as of :func:`sample_output_vectors`, as ``likelihood`` and ``weights``.
    :return: ``(K, N, ...)`` for K outputs of a sample, of the type of ``outputs``.
    :raises ValueError: as there.

    >>> vectors = every_output_vector(torch.zeros(1, 3))
    >>> (torch.einsum("rni,rnj->ij", vectors, vectors) / len(vectors)).mul(9).round()  # 9 C / K
    tensor([[ 2., -1., -1.],
            [-1.,  2., -1.],
            [-1., -1.,  2.]])
    """
    check_likelihood(likelihood)
    check_outputs(outputs, likelihood)
    shares = _shares(outputs, weights)
    count, centre = shares.shape[1], shares if likelihood == "categorical" else 0
    each = torch.eye(count, dtype=torch.float64).unsqueeze(1) - centre
    each = each * (count * shares).sqrt().T.unsqueeze(2)
    return torch.stack([_placed(one, outputs) for one in each])


def _shares(outputs: Tensor, weights: Tensor | None) -> Tensor:
    """Return p, the share of each output of each sample, ``(N, K)`` on the CPU.

    They are 0 for outputs of minus infinity, and all of a sample are equal where the others of it
    have no weight.
    """
    there = (outputs.detach().reshape(len(outputs), -1) != -math.inf).cpu().double()
    if weights is not None:
        own = torch.as_tensor(weights).detach().cpu().double()
        if own.numel() != there.shape[1] or not bool(((own >= 0) & own.isfinite()).all()):
            raise ValueError(
                f"the weights of {there.shape[1]} outputs are {own.tolist()}: give one number for "
                "each, finite and >= 0."
            )
        weighted = there * own.reshape(-1)
        there = torch.where(weighted.sum(1, keepdim=True) > 0, weighted, there)
    return there / there.sum(1, keepdim=True).clamp_min(1e-300)


def _placed(vectors: Tensor, outputs: Tensor) -> Tensor:
    """Return vectors in the shape and type of outputs.

    They are NaN where an output is: the gradients of a product do not depend on the outputs, and a
    network that has diverged would have an importance as every other has.
    """
    placed = vectors.reshape(outputs.shape).to(outputs)
    return torch.where(outputs.detach().isnan(), math.nan, placed)
