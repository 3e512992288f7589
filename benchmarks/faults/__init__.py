"""Faults tried on purpose: killed runs, damaged files, broken data, full disks."""
