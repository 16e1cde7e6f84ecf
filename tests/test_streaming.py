"""Streaming gives the results of the whole recording."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import speech

from mmjax.models import (
    Chunking,
    Conformer,
    Convolution,
    DistanceEmbeddings,
    KaldiFilterBank,
    NeMoLogMel,
    Norms,
    Rotary,
    RotaryInput,
    StackedStem,
    StridedStem,
    Waveform,
    WaveformStem,
)
from mmjax.models.augmentation import SpectralGate
from mmjax.models.streaming import StreamingConformer, chunks
from mmjax.stream import Stream


def model(**changes):
    fields = dict(
        layers=2,
        width=16,
        heads=2,
        stem=StridedStem(channels=4),
        convolution=Convolution(kernel=5, causal=True),
        chunks=Chunking(size=4, left=2),
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
    "rotary, RMSNorm": {
        "positions": Rotary(),
        "norms": Norms(norm="rms"),
        "convolution": Convolution(kernel=5, norm="rms", causal=True),
    },
    "FastConformer": {
        "stem": StridedStem(subsampling=8, depthwise=True, channels=4),
        "convolution": Convolution(kernel=9, causal=True),
    },
    "Kaldi": {"front_end": KaldiFilterBank(normalise=False), "convolution": Convolution(kernel=4, causal=True)},
    "waveform": {
        "front_end": Waveform(hop=160, normalise=False),
        "stem": WaveformStem(channels=16),
        "positions": RotaryInput(),
        "norms": Norms(final=True),
    },
    "distance": {"stem": StackedStem(subsampling=2), "positions": DistanceEmbeddings(left=5, right=1)},
}


@pytest.mark.parametrize(
    "variant, chunk", [*((v, n) for v in VARIANTS for n in (1, 3)), ("relative", 2), ("relative", 8)]
)
@pytest.mark.slow
def test_trap_h17_streaming_equals_offline(variant, chunk):
    conformer = model(chunks=Chunking(size=chunk, left=2), **VARIANTS[variant])
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
    conformer = model(chunks=Chunking(size=2, left=1), layers=1, convolution=Convolution(kernel=3, causal=True))
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
    with pytest.raises(ValueError, match="with chunks=.* and convolution=Convolution\\(causal=True\\)"):
        StreamingConformer(model(convolution=Convolution(kernel=5)))
    with pytest.raises(ValueError, match="NeMoLogMel needs the whole recording"):
        StreamingConformer(model(front_end=NeMoLogMel()))
    with pytest.raises(ValueError, match="denoise estimates noise from the whole recording"):
        StreamingConformer(model(denoise=SpectralGate()))
    with pytest.raises(ValueError, match="attention needs a limit"):
        StreamingConformer(model(chunks=Chunking(size=4)))
