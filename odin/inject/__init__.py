"""Synthetic co-located load: what it does, where, when, and that it ends."""
