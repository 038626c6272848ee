"""Turning one knob, the batch or the number of instances, so that latencies stay within a limit."""
