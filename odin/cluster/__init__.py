"""Ray: connecting, tokens, nodes that were started, where stages go, and their actors."""
