"""What an earlier start found out about a model, kept on disk."""
