"""What runs of policies gave, in one format for simulation and live runs, and the report on it."""
