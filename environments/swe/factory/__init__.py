"""Makes repository tasks by breaking functions that tests cover (mutate-fix)."""
