"""ODIN and its alternatives, on the same two cores with the same images, model and weights.

Run it with ``python -m benchmarks.alternatives``. One file per alternative; ``run_process`` measures one.
"""
