"""One check of seeds, so that a bad one is named before anything is drawn with it."""

from numbers import Integral

import numpy as np


def require_seed(seed: int, *, bits: int | None = None) -> int:
    """The seed as a Python integer.

    Args:
        seed: of any size.
        bits: that a generator takes (32 for pandas, 64 for torch): larger seeds are hashed to as many.

    Raises:
        ValueError: not a whole number, or a negative one.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed={seed!s:.40}: expected a whole number. Give 0 or more.")
    seed = int(seed)
    if bits is None or seed < 2**bits:
        return seed
    return int.from_bytes(np.random.SeedSequence(seed).generate_state(bits // 32).tobytes(), "little")


def derived_seed(seed: int, *places: int) -> int:
    """A seed of its own for each place, so that none depends on how many others there are.

    Raises as `require_seed`.
    """
    return int(np.random.SeedSequence((require_seed(seed), *places)).generate_state(1)[0])


def generator(seed: int) -> np.random.Generator:
    """NumPy's generator of a seed. Raises as `require_seed`."""
    return np.random.default_rng(require_seed(seed))
