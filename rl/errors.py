"""Failures of a run: those that end it with a message, not a traceback, and those that parts tell each other of."""


class RunFailed(RuntimeError):
    """The run cannot go on; the message says which part failed and what to do. Finished work is in the last checkpoint."""


class PartDied(RunFailed):
    """A learner, generator or rollout worker died, or did not answer within its deadline."""


class PartGone(Exception):
    """A call did not reach its process, or got no answer: the process is dead, its node is, or it was given up. Callers try elsewhere."""


class PartUnreachable(PartGone):
    """For now: the process may be alive behind a connection that broke. Callers try again."""


class WeightSyncError(RuntimeError):
    """A bucket, or a whole version, that must not be used for sampling. The message names the parameter and the version."""


class BaseMissing(WeightSyncError):
    """A delta came to a receiver that does not hold what it is told against: it must be seeded with a whole version first."""


class BroadcastFailed(Exception):
    """A group could not be made, or a broadcast did not come to its end. The group is of no more use; the weights must go another way."""
