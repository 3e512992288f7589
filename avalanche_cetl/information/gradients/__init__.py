"""Per-sample gradients: how they are had, exactly and at the least cost."""
