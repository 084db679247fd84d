"""One check of seeds, so that a bad one is named before anything is drawn with it."""

from numbers import Integral

import numpy as np


def require_seed(seed: int) -> int:
    """The seed, of any size, as a Python integer.

    Raises:
        ValueError: not a whole number, or a negative one.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed={seed!s:.40}: expected a whole number. Give 0 or more.")
    return int(seed)


def short_seed(seed: int) -> int:
    """The seed for generators that read 32 bits (pandas, torch); a larger one is hashed to as many.

    torch takes 64 bits and reads 32 of them: 2**32 would draw as 0 does. Raises as `require_seed`.
    """
    return require_seed(seed) if seed < 2**32 else derived_seed(seed)


def derived_seed(seed: int, *places: int) -> int:
    """A seed of its own for each place, so that none depends on how many others there are.

    Raises as `require_seed`.
    """
    return int(np.random.SeedSequence((require_seed(seed), *places)).generate_state(1)[0])


def generator(seed: int) -> np.random.Generator:
    """NumPy's generator of a seed. Raises as `require_seed`."""
    return np.random.default_rng(require_seed(seed))
