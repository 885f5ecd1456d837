"""The viewer of the rollout log: pages rendered by the server, loopback only, read only."""
