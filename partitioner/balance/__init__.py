"""The exact best plan, and what stages cost for any range of layers."""
