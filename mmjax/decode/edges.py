"""Automata and tries as sorted arrays, searched on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

SHORTEST = 256  # the smallest size of padded arrays


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, and at least `SHORTEST`."""
    return max(SHORTEST, 1 << (count - 1).bit_length())


@struct.dataclass
class Edges:
    """The edges of a graph, sorted by node and token; of each node, a token has at most one edge.

    Attributes:
      first: [N + 1] int32; the edges of node n are first[n] to first[n + 1].
      tokens: [E + 1] int32, of each edge; the last is no edge.
      steps: of a binary search in the edges of any node.
    """

    first: jax.Array
    tokens: jax.Array
    steps: int = struct.field(pytree_node=False)

    @classmethod
    def of(cls, nodes: np.ndarray, tokens: np.ndarray, count: int) -> "Edges":
        """The edges of `count` nodes; `nodes` and `tokens` [E] are those of each edge, in order."""
        first = np.searchsorted(nodes, np.arange(count + 1)).astype(np.int32)
        return cls(first, np.append(tokens, -1).astype(np.int32), int(np.diff(first).max(initial=0)).bit_length())

    def padded(self) -> "Edges":
        """The same edges in arrays whose lengths are powers of two (N, and E + 1), with steps that depend on E alone."""
        nodes, edges = len(self.first) - 1, len(self.tokens)
        first = np.pad(self.first, (0, power_of_two(nodes) - nodes), "edge")
        tokens = np.pad(self.tokens, (0, power_of_two(edges) - edges), constant_values=-1)
        return Edges(first, tokens, len(tokens).bit_length())

    def find(self, nodes: jax.Array, tokens: jax.Array) -> jax.Array:
        """The number of the edge of each node with a token, -1 if there is none; the arguments are broadcast."""
        nodes, tokens = jnp.broadcast_arrays(nodes, tokens)
        known, first = jnp.asarray(self.tokens), jnp.asarray(self.first)
        low, end = first[nodes], first[nodes + 1]

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) // 2
            right = (low < high) & (known[middle] < tokens)
            return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

        low, _ = jax.lax.fori_loop(0, self.steps, halve, (low, end))
        return jnp.where((low < end) & (known[low] == tokens), low, -1)
