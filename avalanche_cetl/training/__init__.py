"""CETLStrategy, and what it is made of.

The words of this package, once: S is the frozen source network, T2 the target network, and T1 the
decoder that both share; x is an image of the target data.

========== ====== ============================================ ======= ======== ==============
stage      trains loss, mean over batch and pixels             penalty reads    measured after
========== ====== ============================================ ======= ======== ==============
1 source   T1     :math:`L_{rs} = |T_1(S(x)) - x|^2`           DWA2    target   GFI1
2 coupled  T1, T2 :math:`L_{rt} = |T_1(T_2(x)) - T_1(S(x))|^2` DWA1    target   GFI2, GFI3
3 classify T2     L_c, the criterion                           DWA3    labelled nothing
========== ====== ============================================ ======= ======== ==============

Target rows are those of domain 0 (all rows of a data set without ``domain_labels``), labelled rows
those with a label >= 0. GFI1 and GFI2 are the Generalized Fisher Information (eqs. 9, 10) of T1's
weights, GFI3 that of T2's: GFI1 keeps what L_rs needs, GFI2 and GFI3 what L_rt needs. DWA1 to DWA3
are the penalties (eq. 11) with GFI1 to GFI3.

Callbacks: stage 3 is Avalanche's ordinary training loop with all of them, so that stock plugins,
loggers and minibatch metrics see it alone. Stage 2 fires ``before_backward`` as well, so that
penalties (EWC, LwF, SI) hold T2 there too; a plugin that holds weights after a step (GFIPlugin) has
its ``hold_weights(strategy, optimizer)`` called with that stage's optimiser. ``CETLPlugin`` adds
``before_stage``, ``after_stage``, ``after_step`` and ``after_round``.
"""

from avalanche_cetl.common.validation import NonFiniteLossError
from avalanche_cetl.plugins.base import Stage
from avalanche_cetl.training.engine import Engine
from avalanche_cetl.training.gfi import GFI
from avalanche_cetl.training.networks import MultiTaskCoupledModel
from avalanche_cetl.training.presets import parse_preset
from avalanche_cetl.training.recipe import Recipe
from avalanche_cetl.training.ridge import StreamingRidge
from avalanche_cetl.training.stages import (
    Callbacks,
    ClassifyStage,
    CoupledStage,
    DirectStage,
    MergedStage,
    Payment,
    SourceStage,
    TrainingStage,
)
from avalanche_cetl.training.strategy import CETLStrategy
from avalanche_cetl.training.variants import VARIANTS, Variant

__all__ = [
    "GFI",
    "VARIANTS",
    "CETLStrategy",
    "Callbacks",
    "ClassifyStage",
    "CoupledStage",
    "DirectStage",
    "Engine",
    "MergedStage",
    "MultiTaskCoupledModel",
    "NonFiniteLossError",
    "Payment",
    "Recipe",
    "SourceStage",
    "Stage",
    "StreamingRidge",
    "TrainingStage",
    "Variant",
    "parse_preset",
]
