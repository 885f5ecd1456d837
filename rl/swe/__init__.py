"""`rl swe`: images, task folders and episodes of repository tasks."""
