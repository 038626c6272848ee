"""The GPUs that a stage could use here."""

from __future__ import annotations

__all__ = ["gpu_names"]


def gpu_names() -> tuple[str, ...]:
    """Names of the CUDA devices that PyTorch sees, ``gpu:0`` first; empty without any."""
    import torch  # here: a stage on CPU cores asks for no GPUs, and may compute without PyTorch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
