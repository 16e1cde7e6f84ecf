"""What all objectives share."""

import jax

SumWeight = tuple[jax.Array, jax.Array]

BLANK = 0  # of CTC and transducer; the tokenizer keeps id 0 free
NEVER = -1e30  # log 0 that subtracts from itself without NaN
