"""How many attention scores the learner computes at once; without torch, because `rl plan` counts with it too."""

EAGER_SCORES = 16_000_000
"""Most scores of one layer: each costs some 10 bytes a layer until the backward pass."""
