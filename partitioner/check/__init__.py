"""Checks against the original model: agreement of the prepared form, state kept between calls, independent samples."""
