"""Seeds that depend on names, so that any worker draws the same sample."""

import hashlib


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**31) for `parts` under the run's seed, the same on every machine (BLAKE2b of their text)."""
    text = "\x1f".join([str(run_seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") % 2**31
