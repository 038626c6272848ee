"""From a model to a graph that is fast and can be cut."""
