"""What concerns the whole process: signals, forked children, threads, child processes, files."""
