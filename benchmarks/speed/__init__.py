"""Speed and memory, ours against what else there is; ratios within one process."""
