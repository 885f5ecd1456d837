"""`rl trace`: programs traced from the command line. `environments/traces/` does the work."""
