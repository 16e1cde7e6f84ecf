"""The loop that writes token by token. Its cache grows, because most texts are far shorter than the limit."""

from collections.abc import Callable
from typing import Any

import jax

FIRST = 64  # slots for tokens of each text before the cache grows to the whole length


def written_in_stages(
    goes_on: Callable[[Any, int], Any],
    write: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    cache: Any,
    length: int,
) -> Any:
    """A `while_loop` with a cache. If there may be many more tokens than `FIRST`, the room of the cache grows once.

    Each step reads the whole room of the cache, and a beam search also copies it. The step is compiled once for each room.

    Args:
      goes_on: (carry, room) -> whether to write a token; a text has at most `room` tokens.
      write: (carry, cache) -> both, with one more token of each text.
      cache: without room for tokens; `cache.grown(room)` has room for `room` more tokens of each text.
      length: the largest number of tokens.

    Returns:
      The carry.
    """
    before = 0
    for room in (FIRST, length) if length > 2 * FIRST else (length,):
        cache, before = cache.grown(room - before), room
        carry, cache = jax.lax.while_loop(lambda x, room=room: goes_on(x[0], room), lambda x: write(*x), (carry, cache))
    return carry
