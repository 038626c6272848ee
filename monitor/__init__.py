"""Stage timings, seen in-band, and what is read from them."""
