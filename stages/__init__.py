"""Devices, weights, channels, timed execution and the Ray actor of a stage."""
