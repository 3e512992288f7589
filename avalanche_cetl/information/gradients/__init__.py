"""Per-sample gradients: how they are computed, exactly and at the least cost."""
