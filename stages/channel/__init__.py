"""Tensors from one stage to the next: header, slots, shared memory within a machine, TCP between two."""
