"""Repositories in containers: images, tasks, the agent's environment, and the run of hidden tests."""
