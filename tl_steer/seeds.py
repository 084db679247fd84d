"""One check of seeds, so that a bad one is named before anything is drawn with it."""

from numbers import Integral

import numpy as np


def require_seed(seed: int) -> int:
    """The seed, if it is one that all generators take.

    Raises:
        ValueError: no whole number, a negative one, or one of more than 63 bits.
    """
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed!s:.40}: give a whole number from 0 to 2**63 - 1.")
    return int(seed)


def derived_seed(seed: int, *places: int) -> int:
    """A seed of its own for each place, so that none depends on how many others there are.

    Raises as `require_seed`.
    """
    return int(np.random.SeedSequence((require_seed(seed), *places)).generate_state(1)[0])


def generator(seed: int) -> np.random.Generator:
    """NumPy's generator of a seed. Raises as `require_seed`."""
    return np.random.default_rng(require_seed(seed))
