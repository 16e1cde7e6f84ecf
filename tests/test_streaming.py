"""A chunk at a time gives what the whole recording gives (trap H17)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import speech

from mmjax.models import Conformer, KaldiFilterBank, LogMel, NeMoLogMel, Waveform
from mmjax.models.augmentation import SpectralGate
from mmjax.models.streaming import StreamingConformer, chunks
from mmjax.stream import Stream


def model(**changes):
    fields = dict(
        front_end=LogMel(), layers=2, width=16, heads=2, kernel=5, stem_channels=4, causal=True, chunk=4, left_chunks=2
    )
    return Conformer(**fields | changes)


def randomised(params):
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params)


def batch_of(count, hops):
    """Recordings of different lengths, one per row."""
    rows = [speech(hops - 3 * i, room=hops, seed=i) for i in range(count)]
    return Stream(*(jnp.concatenate(parts) for parts in zip(*rows, strict=True)))


VARIANTS = {
    "relative": {},
    "rotary, RMSNorm": {"positions": "rotary", "norm": "rms", "convolution_norm": "rms"},
    "FastConformer": {"subsampling": 8, "stem": "depthwise", "kernel": 9},
    "Kaldi": {"front_end": KaldiFilterBank(normalise=False), "kernel": 4},
    "waveform": {
        "front_end": Waveform(hop=160, normalise=False),
        "stem": "waveform",
        "stem_channels": 16,
        "subsampling": 1,
        "positions": "rotary_input",
        "final_norm": True,
    },
    "distance": {"stem": "stack", "subsampling": 2, "positions": "distance", "left_distance": 5, "right_distance": 1},
}


@pytest.mark.parametrize(
    "variant, chunk", [*((v, n) for v in VARIANTS for n in (1, 3)), ("relative", 2), ("relative", 8)]
)
@pytest.mark.slow
def test_trap_h17_streaming_equals_offline(variant, chunk):
    conformer = model(chunk=chunk, **VARIANTS[variant])
    whole = batch_of(1 if chunk == 2 else 7, 96)
    params = randomised(conformer.init(jax.random.key(0), whole))
    offline = jax.jit(conformer.apply)(params, whole)
    streaming = StreamingConformer(conformer)
    step, state, parts = jax.jit(streaming.step), streaming.start(len(whole.segments)), []
    for part in chunks(streaming, whole):
        tokens, state = step(params, state, part)
        parts.append(tokens)
    tokens = Stream(*(jnp.concatenate(p, axis=1)[:, : offline.segments.shape[1]] for p in zip(*parts, strict=True)))
    np.testing.assert_array_equal(tokens.segments, offline.segments)
    np.testing.assert_allclose(tokens.features, offline.features, atol=1e-5)


@pytest.mark.slow
def test_no_chunk_hears_a_later_one_nor_what_lies_too_far_back():
    conformer = model(chunk=2, left_chunks=1, layers=1, kernel=3)
    whole = speech(120)
    params = randomised(conformer.init(jax.random.key(0), whole))
    apply = jax.jit(conformer.apply)
    before = apply(params, whole).features[0]
    changed = apply(params, whole._replace(features=whole.features.at[:, 40:48].add(1.0))).features[0]
    moved = np.flatnonzero(np.abs(changed - before).max(-1) > 1e-6)
    # Windows reach from hop 40 back into token 9, whose chunk is 8 and 9. Forth: the stem into token 12, its chunk
    # (12, 13) is seen by the next (14, 15), and the convolution carries that two tokens on.
    assert (moved.min(), moved.max()) == (8, 17)


def test_what_cannot_stream_says_why():
    with pytest.raises(ValueError, match="causal=True and a chunk"):
        StreamingConformer(model(causal=False))
    with pytest.raises(ValueError, match="NeMoLogMel needs the whole recording"):
        StreamingConformer(model(front_end=NeMoLogMel()))
    with pytest.raises(ValueError, match="denoise measures the noise of the whole recording"):
        StreamingConformer(model(denoise=SpectralGate()))
    with pytest.raises(ValueError, match="how many tokens"):
        StreamingConformer(model(left_chunks=None))
