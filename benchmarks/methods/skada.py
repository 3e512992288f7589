"""Adaptation methods out of SKADA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_cetl import CICNN
from benchmarks.methods.job import AdaptationJob, Method
from benchmarks.methods.plain import labels_alone


class _Aligned(nn.Module):
    """Subspace alignment behind a fixed network's code, with a linear classifier."""

    def __init__(self, network: nn.Module, job: AdaptationJob):
        super().__init__()
        from skada import SubspaceAlignment
        from sklearn.linear_model import LogisticRegression

        self.network = network.eval()
        source, target = self.codes(job.pair.source[0]), self.codes(job.pair.target)
        domains = np.r_[np.ones(len(source)), -2 * np.ones(len(target))].astype(int)
        labels = np.r_[job.pair.source[1].cpu().numpy(), -np.ones(len(target))].astype(int)
        size = min(50, *source.shape, *target.shape)
        self.pipeline = SubspaceAlignment(LogisticRegression(max_iter=500), n_components=size)
        self.pipeline.fit(np.r_[source, target], labels, sample_domain=domains)

    @torch.no_grad()
    def codes(self, images: Tensor) -> np.ndarray:
        """Compute the network's codes."""
        network: Any = self.network
        parts = [network.forward_features(part) for part in images.split(500)]
        return torch.cat(parts).double().cpu().numpy()

    def forward(self, x: Tensor) -> Tensor:
        """Compute log probabilities."""
        found = self.pipeline.predict_log_proba(self.codes(x), sample_domain=-2 * np.ones(len(x)))
        return torch.as_tensor(found)


def subspace_alignment(job: AdaptationJob) -> nn.Module:
    """Train SA (Fernando et al. 2013) on the codes of the network trained on source images."""
    return _Aligned(labels_alone(job), job)


class _Jittered(nn.Module):
    """A network that augments its own training images, for libraries that take arrays."""

    def __init__(self, network: CICNN, job: AdaptationJob):
        super().__init__()
        self.network, self.augment, self.casting = network, job.augment, job.where.casting
        network.hidden.register_forward_hook(_in_float32)  # SKADA's losses are outside of forward

    def forward(self, x: Tensor, sample_weight: Any = None) -> Tensor:
        """Compute logits."""
        with self.casting():
            return self.network(self.augment(x) if self.training else x).float()


def _in_float32(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def deep(name: str) -> Method:
    """Return one of SKADA's deep methods; its layer is the network's code.

    :param name: SKADA's. The strength is the weight of the method's loss.
    """

    def train(job: AdaptationJob) -> nn.Module:
        from skada import deep
        from skorch.callbacks import LRScheduler

        b = job.budget
        falling = LRScheduler("CosineAnnealingLR", T_max=b.epochs)
        network = _Jittered(job.network(), job)
        width = network.network.head.in_features
        more: dict[str, Any] = {}
        if name in ("DANN", "CDAN"):
            more["domain_classifier"] = _domain_classifier(
                width * (job.classes if name == "CDAN" else 1)
            )
        target = job.pair.target
        images = torch.cat([job.pair.source[0], target]).cpu().numpy()
        labels = np.r_[job.pair.source[1].cpu().numpy(), np.full(len(target), -1)]
        domains = np.r_[np.ones(len(job.pair.source[0])), -2 * np.ones(len(target))].astype(int)
        net = getattr(deep, name)(
            network,
            layer_name="network.hidden",
            reg=job.strength,
            batch_size=b.batch,
            max_epochs=b.epochs,
            optimizer=torch.optim.Adam,
            lr=b.learning_rate,
            train_split=None,
            device=job.where.device,
            callbacks=[falling],
            verbose=0,
            **more,
        )
        net.fit(images, labels, sample_domain=domains)
        return net.module_.base_module_.network

    return train


def _domain_classifier(width: int) -> nn.Module:
    """Make SKADA's own, with a sigmoid: in 0.6 it ends in a softmax over its single unit.

    That is 1 whatever comes in, so its gradient is 0 and DANN and CDAN learn from the source alone.
    """
    from skada.deep.modules import DomainClassifier

    found = DomainClassifier(num_features=min(width, 4096))
    found.classifier[-1] = nn.Sigmoid()
    return found
