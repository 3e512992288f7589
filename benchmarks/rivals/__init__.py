"""Adaptation methods that no kept library has: one file each, one loss each."""
