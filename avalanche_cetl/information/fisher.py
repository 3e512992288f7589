"""Per-sample squared gradients and their mean: the diagonal Fisher information.

For one sample ``x`` and one weight ``i`` the paper's random variable is
``F_i(x) = (d log p(. | x, theta) / d theta_i) ** 2``; the diagonal Fisher
information is its mean over samples (Kirkpatrick et al. 2017, and section 3.2
of the CETL paper). The gradient of every sample is squared on its own: the
squared gradient of a mini-batch mean is a different, much smaller quantity.

How it is computed: the whole batch takes one forward and one backward pass (fewer samples at a time
where ``chunk_bytes`` would not hold them). Linear, convolution, normalisation, Embedding and
recurrent layers have closed forms, and a user's own layers may have
(:func:`~avalanche_cetl.information.register_layer_gradients`); class tokens and the like take one
copy per sample, and torch.func runs what is left, module by module. What torch.func cannot run
takes a loop over single samples, with one warning in the log. Every route is verified against that
loop: on two samples when it is chosen, and on samples of the batch with the loss itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis
from avalanche_cetl.information.gradients.per_sample import per_sample_gradients
from avalanche_cetl.information.gradients.second_moments import square_means
from avalanche_cetl.information.likelihood import Loss, LossName
from avalanche_cetl.information.outputs import Likelihood

#: Bound on activations and per-sample gradients held at once. 500 images of 32 x 32 pixels fit into
#: it for CICNN (1 MiB each), 104 for ResNet-26.
DEFAULT_CHUNK_BYTES = 512 * 2**20


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
    basis: KroneckerBasis | None = None,
) -> dict[str, Tensor]:
    r"""Compute diagonal Fisher information: the mean over samples of squared per-sample gradients.

    .. math:: F_i = \frac{1}{N} \sum_n \left( \frac{\partial L(x_n)}{\partial \theta_i} \right)^2

    L is the loss, N is ``len(inputs)``. It is a mean over samples of squares, never the square of a
    batch mean, and no factor depends on the batch or chunk size. The model runs in eval mode and is
    left as it was found; samples must not influence one another there. The module's docstring tells
    how it is computed.

    The model, its buffers and attributes, and the tensors given are as they were afterwards. A
    network that loses the batch axis of a single sample (``squeeze()``) runs it as a pair. Of a
    complex weight the result is the mean of ``|gradient|^2``.

    :param model: any module; called as ``model(*inputs)``.
    :param inputs: a tensor ``(N, ...)``, or a tuple of such tensors.
    :param loss: ``"sampled"`` (true Fisher: targets drawn once from the model's own
        output, see :func:`sample_targets`), ``"empirical"`` (targets given), ``"logits"``
        (importance of the outputs, by one vector per sample: see
        :func:`~avalanche_cetl.information.sample_output_vectors`), or a callable
        ``(outputs, targets) -> (N,)`` (``(outputs) -> (N,)`` without targets).
    :param params: names of the parameters to measure; default: all that require a gradient.
    :param targets: labels ``(N,)`` or images ``(N, ...)`` for ``"empirical"``, or whatever
        the callable reads (tensors with N rows).
    :param likelihood: how a named loss reads the output: ``"categorical"`` logits,
        ``"bernoulli"`` logits of yes or no, or ``"gaussian"`` reconstructions with unit variance
        (squared error halved and summed over pixels).
    :param generator: CPU generator of the sampled targets or vectors.
    :param chunk_bytes: bound on the memory of activations and per-sample gradients held at
        once, as far as a single sample fits into it.
    :param process_group: of torch.distributed: every process measures samples of its own (the
        model and ``params`` are the same), the mean is over all of them and the same
        everywhere. A process that fails stops the others. Default: this process alone.
    :param basis: of :func:`kronecker_basis`: the Fisher information of its layers is that of their
        directions; the biases that are part of them have no entry of their own.
    :return: dict from parameter name to a tensor of the parameter's shape (in a basis, of the
        layer's directions), values >= 0.
    :raises ValueError: for empty inputs, unknown parameters, losses or likelihoods.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> fisher_information(model, x, loss=lambda out: out.squeeze(1))["weight"]
    tensor([[ 5., 10.]])
    """
    with per_sample_gradients(
        model, inputs, [(loss, targets)], params, chunk_bytes, process_group, basis,
        likelihood, generator,
    ) as gradients:  # fmt: skip
        return gradients.reduce(lambda g: g.restored(square_means(g).fisher[0]))
