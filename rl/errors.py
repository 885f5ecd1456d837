"""Failures of a run that end it with a message, not a traceback."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says which part failed and what to do. Finished work is in the last checkpoint."""


class PartDied(RunFailed):
    """A learner, generator or rollout worker died, or did not answer within its deadline."""
