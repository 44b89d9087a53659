"""Benchmark suites, installed as ``ameir_fast.bench``; stored results lie in ``bench/results/``."""
