"""`python -m avalanche_cetl demo`: CETL beside its rivals on two real digit sets."""
