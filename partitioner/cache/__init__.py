"""Cache on disk of what earlier starts found out about a model."""
