"""Policies: when and where layers move; pure, the same objects live and in simulation."""
