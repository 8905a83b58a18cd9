"""Benchmarks; each writes one file into results/."""
