"""Runnable experiments; what they printed is in results/."""
