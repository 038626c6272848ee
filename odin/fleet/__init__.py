"""Many models on a few executors: packed on disk, loaded and evicted by demand, promised by prediction."""
