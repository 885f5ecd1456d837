"""`rl debug`: a model driven as a debugger, beside the real interpreter. `environments/traces/` does the work of the latter."""
