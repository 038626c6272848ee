"""The kind of interference on a stage, and the processes that cause it."""
