"""Batching or instances for a model on this machine: probes, sweeps, and the tuner under a load."""
