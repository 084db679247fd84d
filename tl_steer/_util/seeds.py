"""Validation of seeds, and seeds derived from them."""

from numbers import Integral

import numpy as np


def require_seed(seed: int) -> int:
    """The seed, of any size, as a Python integer; raises ValueError unless it is a whole number from 0."""
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed={seed!s:.40}: expected a whole number. Give 0 or more.")
    return int(seed)


def short_seed(seed: int) -> int:
    """Seed of 32 bits for pandas and torch; larger ones are hashed. Raises as `require_seed`.

    torch accepts 64 bits and uses 32: 2**32 would give the numbers of 0.
    """
    return require_seed(seed) if seed < 2**32 else derived_seed(seed)


def derived_seed(seed: int, *path: int) -> int:
    """A seed per path that does not depend on the number of other paths. Raises as `require_seed`."""
    return int(np.random.SeedSequence((require_seed(seed), *path)).generate_state(1)[0])


def generator(seed: int) -> np.random.Generator:
    """NumPy's random generator. Raises as `require_seed`."""
    return np.random.default_rng(require_seed(seed))
