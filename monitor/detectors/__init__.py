"""Detectors of change in the stages' slowdown, one per file."""
