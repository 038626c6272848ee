"""Helpers for the whole process: signals, forked children, threads, timers, child processes, start-up phases."""
