"""Faults on purpose: `rl chaos` kills, freezes, slows and starves the parts of a live run, and undoes what can be undone."""
