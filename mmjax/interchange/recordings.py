"""Recordings with which speech encoders are compared."""

from typing import Any

import numpy as np


def hear(part: Any, parameters: dict[str, np.ndarray], seed: int, hops: tuple[int, ...]) -> tuple[list, list]:
    """Noise that swells and fades by 40 dB, of so many hops, and what our encoder makes of it, packed into one row.

    (Even noise has hardly any variance over time, and normalising by it would blow up the last bits.)

    Returns:
      The samples [N], and the tokens [T, width], of each.
    """
    import jax.numpy as jnp

    from mmjax.interchange.convert import tree
    from mmjax.stream import Stream

    size, align = part.front_end.hop, part.subsampling
    recordings = []
    for count in hops:
        noise = np.random.default_rng([seed, count]).standard_normal(count * size)
        recordings.append((0.03 * 10 ** np.sin(np.arange(count * size) / 2000) * noise).astype(np.float32))
    blocks, segments, positions = [], [], []
    for number, (samples, count) in enumerate(zip(recordings, hops, strict=True), 1):
        gap = (0, -count % align)
        blocks.append(np.pad(samples.reshape(count, size), (gap, (0, 0))))
        segments.append(np.pad(np.full(count, number), gap))
        positions.append(np.pad(np.arange(count), gap))
    row = Stream(*(jnp.asarray(np.concatenate(parts)[None]) for parts in (blocks, segments, positions)))
    tokens = part.apply({"params": tree(parameters, "encoder")}, row)
    return recordings, [tokens.features[tokens.segments == number] for number in range(1, len(hops) + 1)]
