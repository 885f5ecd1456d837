"""Counter-based randomness: every random draw of a run is a pure function of where it happens."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of names and counters, for example (run seed, task id, sample, turn)."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
