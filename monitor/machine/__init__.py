"""What Linux and the GPU's driver tell: processes, cores, control groups, quotas."""
