"""How another terminal sees a running pipeline."""
