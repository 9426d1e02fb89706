"""Random draws that are a function of a key, and leave the rest of the program's draws alone."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_of(*key: int) -> int:
    """A 63-bit seed that is a function of whole numbers ≥ 0 such as (seed, epoch, rank, batch)."""
    # NumPy ignores trailing zeros, so the number of parts goes first
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from ``seed`` inside, and go on as before after.

    timm's transforms draw from the global generators; user code around the loader must not notice.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' too
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
