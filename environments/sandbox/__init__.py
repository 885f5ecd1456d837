"""Sandboxes: run one hostile Python program and say what happened. `base.py` is the contract, `make.py` chooses a kind."""
