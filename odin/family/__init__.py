"""Families of variants: a request says how accurate and how soon, and gets the variant that does it."""
