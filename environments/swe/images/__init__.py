"""Images of repositories: a base from the host's Python, sources unpacked as data, dependencies from wheels, tests run on record."""
