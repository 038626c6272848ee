"""The live benchmark: policies, and the alternatives to ODIN, under the same interference on the same cores."""
