"""The live benchmark: policies, and what one would use instead, under the same interference on the same cores."""
