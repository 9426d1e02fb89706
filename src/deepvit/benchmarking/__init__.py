"""Benchmarks against the peers: attention operators, whole networks, the training engine. Ratios of one run, A B A B."""
