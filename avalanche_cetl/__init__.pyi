from avalanche_cetl.allocation import GFISettings, WeightPenalty
from avalanche_cetl.checkpoints import (
    CheckpointError,
    CheckpointPlugin,
    load_checkpoint,
    save_checkpoint,
)
from avalanche_cetl.common.version import __version__ as __version__
from avalanche_cetl.encoders import (
    Encoder,
    ModuleEncoder,
    ONNXEncoder,
    PrecomputedEncoder,
    TimmEncoder,
    linear_probe,
)
from avalanche_cetl.evaluation import bound_metrics, cetl_metrics, gfi_metrics, validator_metrics
from avalanche_cetl.features import FeatureStoreError, with_source_features
from avalanche_cetl.information import (
    Quantile,
    dwa_penalty,
    fisher_information,
    generalized_fisher,
    relative_fisher,
)
from avalanche_cetl.models import CICNN, CoupledModel, ResNet26, ReversedDecoder, as_target
from avalanche_cetl.plugins import (
    CETLPlugin,
    DecoderHints,
    FitNetsHints,
    GFIPlugin,
    InformationMaximization,
    LossPlugin,
    MinimumClassConfusion,
    SoftTargets,
    ViewConsistency,
)
from avalanche_cetl.scenarios import (
    CETLScenario,
    adaptation_benchmark,
    distillation_benchmark,
    mixed_images,
    paper_benchmark,
    plot_benchmark,
    transfer_benchmark,
    with_mixed_images,
)
from avalanche_cetl.training import GFI, CETLStrategy

__all__ = [
    "CICNN",
    "GFI",
    "CETLPlugin",
    "CETLScenario",
    "CETLStrategy",
    "CheckpointError",
    "CheckpointPlugin",
    "CoupledModel",
    "DecoderHints",
    "Encoder",
    "FeatureStoreError",
    "FitNetsHints",
    "GFIPlugin",
    "GFISettings",
    "InformationMaximization",
    "LossPlugin",
    "MinimumClassConfusion",
    "ModuleEncoder",
    "ONNXEncoder",
    "PrecomputedEncoder",
    "Quantile",
    "ResNet26",
    "ReversedDecoder",
    "SoftTargets",
    "TimmEncoder",
    "ViewConsistency",
    "WeightPenalty",
    "adaptation_benchmark",
    "as_target",
    "bound_metrics",
    "cetl_metrics",
    "distillation_benchmark",
    "dwa_penalty",
    "fisher_information",
    "generalized_fisher",
    "gfi_metrics",
    "linear_probe",
    "load_checkpoint",
    "mixed_images",
    "paper_benchmark",
    "plot_benchmark",
    "relative_fisher",
    "save_checkpoint",
    "transfer_benchmark",
    "validator_metrics",
    "with_mixed_images",
    "with_source_features",
]
