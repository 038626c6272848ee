"""The view of a pipeline, built from events, and its rendering in a terminal."""
