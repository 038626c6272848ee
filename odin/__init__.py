"""Interference-aware pipeline-parallel CNN inference."""
