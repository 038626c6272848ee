"""Why a stage is slow, and who makes it so."""
