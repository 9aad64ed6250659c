"""Evaluation: the held-out episodes, and what the benchmarks print of fidelity and speed."""
