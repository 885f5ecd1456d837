"""The policy version of an engine whose weights are written in place, between two of its steps."""


class Versioned:
    """Base of such an engine."""

    def __init__(self, *, stale: bool) -> None:
        """`stale`: the first step must take the weights over too."""
        self._version = 0
        self._stale = stale
        """The weights of this version have not been taken over yet."""

    @property
    def version(self) -> int:
        """Policy version that tags the next tokens. Setting it puts what was written through `parameters()` to use."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version = version
        self._stale = True
