"""Linear probe: a classifier of a frozen encoder's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_cetl.common.standardize import SHARE, floored_deviation

#: What features that do not vary are divided by.
LEAST_DEVIATION = 1e-8
#: Logit of a class that no row has.
ABSENT = -30.0


def linear_probe(
    features: Tensor, labels: Tensor, strength: float = 1e-3, num_classes: int | None = None
) -> nn.Linear:
    """Return a logistic regression on standardised features, with an l2 penalty, as a linear layer.

    The layer reads raw features in float32: the standardisation is in its weights.

    :param features: ``(N, dim)``, of any floating type.
    :param labels: ``(N,)``, integer class indices >= 0, of two classes or more.
    :param strength: inverse of the l2 penalty's weight, > 0 (scikit-learn's ``C``).
    :param num_classes: outputs K; default: the highest label + 1. Classes without a row get a logit
        of -30.
    :return: ``nn.Linear(dim, K)`` in float32 on the features' device, frozen; it gives logits.
    :raises ValueError: for values out of range, of the wrong shape, or without a row.

    >>> x = torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 1.0], [3.0, 2.0]])
    >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), strength=1.0)(x).argmax(1)
    tensor([0, 0, 1, 1])
    """
    from sklearn.linear_model import LogisticRegression

    for name, tensor in (("features", features), ("labels", labels)):
        if not tensor.numel():
            raise ValueError(
                f"{name} is empty, of shape {tuple(tensor.shape)}: there is no row to learn from."
            )
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}: class indices have to be integers.")
    known = labels.unique().tolist()
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)} have to be "
            "(N, dim) and (N,)."
        )
    if len(known) < 2 or min(known) < 0:
        raise ValueError(f"labels {known}: two classes or more are needed, counted from 0.")
    count = max(known) + 1 if num_classes is None else num_classes
    if count <= max(known):
        raise ValueError(f"num_classes={count}, but there is a label {max(known)}.")
    if not strength > 0:
        raise ValueError(f"strength={strength} has to be > 0.")
    device = features.device
    features = features.detach().float().cpu()
    share = torch.tensor(SHARE, dtype=torch.float64)
    mean = features.mean(0)
    std = floored_deviation(features, correction=1, share=share).clamp_min(LEAST_DEVIATION)
    scaled = ((features - mean) / std).double().numpy()
    fitted = LogisticRegression(C=strength, max_iter=300).fit(scaled, labels.cpu().numpy())
    weight = torch.as_tensor(fitted.coef_, dtype=features.dtype) / std
    bias = torch.as_tensor(fitted.intercept_, dtype=features.dtype) - weight @ mean
    if len(known) == 2:  # scikit-learn gives the second class's row alone
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    layer = nn.Linear(features.shape[1], count)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(ABSENT)
        layer.weight[known] = weight
        layer.bias[known] = bias
    return layer.requires_grad_(False).to(device)
