"""Readings from Linux and the GPU driver: processes, cores, control groups, quotas."""
