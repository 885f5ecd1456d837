"""Failures of a run that end it with a message, not a traceback."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says which part failed and what to do. Finished work is in the last checkpoint."""


class PartDied(RunFailed):
    """A learner, generator or rollout worker died, or did not answer within its deadline."""


class PartGone(Exception):
    """A call did not reach its process, or got no answer: the process is dead, its node is, or it was given up. Callers try elsewhere."""


class PartUnreachable(PartGone):
    """For now: the process may be alive behind a connection that broke. Callers try again."""
