"""``python -m bench perf``: our kernels against the best peer and the machine's ceiling, with targets."""
