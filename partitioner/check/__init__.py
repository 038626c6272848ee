"""The original model as the judge: whether the prepared one agrees, what it keeps, what depends on what."""
