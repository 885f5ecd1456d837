"""Containers of a Docker engine: hardened, limited, and gone when their owner is."""
