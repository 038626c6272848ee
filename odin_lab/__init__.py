"""Measuring and comparing: loads, timings, simulation, live benchmark, reports. Serving imports nothing of it."""
