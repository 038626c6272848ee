"""What requests cost on devices of given prices: each model alone on them against all of them together."""
