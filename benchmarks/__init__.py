"""Measurements, each a command: ``python -m benchmarks.NAME [--quick]`` from the repository's root."""
