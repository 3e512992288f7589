from avalanche_cetl.features.attach import with_source_features
from avalanche_cetl.features.shards import FeatureStoreError
from avalanche_cetl.features.store import default_cache_dir

__all__ = ["FeatureStoreError", "default_cache_dir", "with_source_features"]
