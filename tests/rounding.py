"""How far two sums of the same terms may be apart: it follows from the terms, not from the machine that adds them."""

import numpy as np


def assert_same_sums(ours, theirs, magnitudes, terms: int, eps: float = 2.0**-23) -> None:
    """That two ways to compute a sum (a product of matrices, a convolution) differ by no more than rounding.

    The rounding errors of a sum of n terms are at most lambda sqrt(n) u sum |terms|, u being half of eps, except with a
    probability that falls as exp(-lambda^2 / 2) (Higham and Mary 2019, "A new approach to probabilistic rounding error
    analysis", theorem 2.4). Both sums have such an error; lambda is 5.

    Args:
      magnitudes: the sums of the terms' magnitudes: for what is linear in each factor, the same with absolute factors.
      terms: of each sum.
    """
    bound = 5.0 * np.sqrt(terms) * eps * np.asarray(magnitudes, np.float64)
    apart = np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    worst = np.unravel_index(np.argmax(apart - bound), apart.shape)
    assert (apart <= bound).all(), f"at {worst}: {apart[worst]:.3g} apart, and rounding is {bound[worst]:.3g} at most"
