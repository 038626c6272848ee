"""Layers on a device: timed execution, and weights where every stage reads them."""
