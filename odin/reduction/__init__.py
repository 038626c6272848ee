"""Less computation for a request: early exits and narrower copies of a model, with what each costs in accuracy."""
