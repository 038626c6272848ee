"""A request from ``submit`` to its answer: places, deadlines, micro-batches, futures, streams."""
