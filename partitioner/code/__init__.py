"""A layer as generated Python code, and what that code calls."""
