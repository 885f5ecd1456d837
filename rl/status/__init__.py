"""What every part of a run does: each process tells it, the driver writes it down, `rl status` shows it."""
