"""Streaming gives the results of the whole recording."""

import copy
import dataclasses
import functools
import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import soundfile
import soxr
from conftest import tiny
from test_models import speech
from untrained import causal, parameters, tokenizer, untrained

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.example import Example
from mmjax.data.packing import Packer
from mmjax.decode import by_example
from mmjax.errors import UserError
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
from mmjax.run import Run
from mmjax.stream import Stream
from mmjax.transcription import Streaming


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


def batch_of(count, hops):
    """Recordings of different lengths, one per row."""
    rows = [speech(hops - 3 * i, room=hops, seed=i) for i in range(count)]
    return Stream(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


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
def test_streaming_equals_offline(variant, chunk):
    conformer = model(chunks=Chunking(size=chunk, left=2), **VARIANTS[variant])
    whole = batch_of(1 if chunk == 2 else 7, 96)
    params = {"params": parameters(conformer, whole)}
    offline = jax.jit(conformer.apply)(params, whole)
    streaming = StreamingConformer(conformer)
    step, state, parts = jax.jit(streaming.step), streaming.start(len(whole.segments)), []
    for part in chunks(streaming, whole):
        tokens, state = step(params, state, part)
        parts.append(jax.device_get(tokens))
    tokens = Stream(*(np.concatenate(p, axis=1)[:, : offline.segments.shape[1]] for p in zip(*parts, strict=True)))
    np.testing.assert_array_equal(tokens.segments, offline.segments)
    np.testing.assert_allclose(tokens.features, offline.features, atol=1e-5)


@pytest.mark.slow
def test_no_chunk_hears_a_later_one_nor_what_lies_too_far_back():
    conformer = model(chunks=Chunking(size=2, left=1), layers=1, convolution=Convolution(kernel=3, causal=True))
    whole = speech(120)
    params = {"params": parameters(conformer, whole)}
    apply = jax.jit(conformer.apply)
    features = whole.features.copy()
    features[:, 40:48] += 1.0
    before, changed = (np.asarray(apply(params, s).features[0]) for s in (whole, whole._replace(features=features)))
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


# A run that streams: CTC and Transducer, texts and utterances.

RATE = 16_000


def sounds(seconds=6.0, rate=RATE, seed=0):
    """Noise whose pitch changes every tenth of a second, with a silence in the middle."""
    draw, count = np.random.default_rng(seed), round(seconds * rate)
    times = np.arange(count) / rate
    pitch = np.repeat(draw.uniform(100, 3_000, -(-count // (rate // 10))), rate // 10)[:count]
    samples = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * draw.normal(size=count)
    silent = (times > 0.4 * seconds) & (times < 0.6 * seconds)
    return np.where(silent, 0.0, samples).astype(np.float32)


def lively(blank, path, value):
    """Parameters with which the head writes often, and something else every time; a transducer not in every frame."""
    if path.endswith("transcript/bias"):
        value[0] += blank
    return 3.0 * value if "transcript" in path else value


@pytest.fixture(scope="module")
def streams(runs):
    """Each stream is one utterance, however long its silences are."""
    return {kind: Streaming(run, silence=1e9) for kind, run in runs.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("streaming")
    ctc = {"transcript": c.CTC()}
    transducer = {"transcript": c.Transducer(width=16)}
    tdt = {"transcript": c.Transducer(width=16, durations=(0, 1, 2, 3))}
    return {
        name: Run(untrained(home / name, causal(), tasks, hops=800, change=functools.partial(lively, blank)))
        for name, tasks, blank in (("ctc", ctc, 0.0), ("transducer", transducer, 3.0), ("tdt", tdt, 0.0))
    }


def offline(run, samples):
    """The tokens (id, frame) and the text that a run predicts for whole recording."""
    (name,) = run.config.model.tasks
    layout = run.layout_for({"speech": samples})
    packer = Packer(layout, 1)
    packer.add(0, Example({"speech": samples}), frozenset({"speech"}))
    stream = jax.device_get(run._program(run.device_params, packer.batch, {}))[name]
    best = run.config.model.tasks[name].prediction(dict(by_example(stream)).get((0, 1)), run.facts).best
    return [(token.id, token.frame) for token in best.tokens], best.text


@pytest.mark.parametrize("kind", ["ctc", "transducer", "tdt"])
@pytest.mark.parametrize("count, size", [(96_000, 1_600), (85_001, 977)])
def test_a_stream_writes_the_tokens_of_the_whole_recording(runs, streams, kind, count, size):
    run, streaming, samples = runs[kind], streams[kind], sounds()[:count]
    tokens, text = offline(run, samples)
    assert len(tokens) > 20 and len({id_ for id_, _ in tokens}) > 4
    found = list(streaming.texts(samples[at : at + size] for at in range(0, count, size)))
    assert [one.final for one in found] == [False] * (len(found) - 1) + [True] * bool(found)
    assert list(found[-1].tokens) == [id_ for id_, _ in tokens] and found[-1].text == text
    assert found[-1].start == pytest.approx(tokens[0][1] * streaming.token)
    assert found[-1].end == pytest.approx((tokens[-1][1] + 1) * streaming.token)
    for before, after in itertools.pairwise(found):
        assert after.tokens[: len(before.tokens)] == before.tokens, "a greedy text only grows"
    assert len(streaming.latencies) == -(-count // (160 * 16)) and streaming.seconds == count / RATE


def test_a_stream_of_another_rate_is_resampled_as_its_file(runs, streams, tmp_path):
    faster = sounds(rate=44_100)
    tokens, _ = offline(runs["ctc"], soxr.resample(faster, 44_100, RATE))
    blocks = (faster[at : at + 3_333] for at in range(0, len(faster), 3_333))
    *_, last = streams["ctc"].texts(blocks, 44_100)
    assert list(last.tokens) == [id_ for id_, _ in tokens]
    whole = np.round(faster * 2**15).astype(np.int16)
    *_, stereo = streams["ctc"].texts([np.stack([whole, whole], axis=1), whole[:0]], 44_100)
    assert len(stereo.tokens) == pytest.approx(len(tokens), abs=3)


def test_an_utterance_ends_after_silence_and_before_the_next_speech(runs, streams):
    """All tokens are those of the whole recording; no pause within an utterance is as long as the one that ends it."""
    heard = 0.0

    def blocks():
        nonlocal heard
        for part in np.split(sounds(), 60):
            yield part
            heard += 0.1

    streaming = streams["ctc"]
    (*_, whole), finals = streaming.texts([sounds()]), []
    patient = copy.copy(streaming)
    patient._patience = round(0.4 / streaming.token)
    for text in patient.texts(blocks()):
        finals += [(text, heard)] if text.final else []
    assert len(finals) >= 2 and [token for text, _ in finals for token in text.tokens] == list(whole.tokens)
    for (one, at), (other, _) in itertools.pairwise(finals):
        assert other.start - one.end >= 0.4 - 1e-6
        assert at <= one.end + 0.4 + streaming.chunk + streaming.look_ahead + 0.1


def test_a_stream_without_speech_says_nothing(streams):
    assert list(streams["transducer"].texts([])) == [] and streams["transducer"].report()["real_time_factor"] == 0.0


@pytest.mark.parametrize(
    "encoder, tasks, message",
    [
        (causal(chunks=None), {"transcript": c.CTC()}, "cannot stream: streaming needs a Conformer with chunks"),
        (causal(chunks=c.Chunking(size=4)), {"transcript": c.CTC()}, "cannot stream: attention needs a limit"),
        (c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32), {"transcript": c.CTC()}, "needs a Conformer"),
        (causal(), {"transcript": c.Write(reads=("speech",))}, "decoding is Greedy, which needs the whole recording"),
        (causal(), {"answer": c.Classify(reads="speech", outputs=3)}, "no task that writes the text of a recording"),
    ],
)
def test_a_run_that_cannot_stream_names_what_is_missing(encoder, tasks, message):
    config = SimpleNamespace(model=c.Multimodal(encoders={"speech": encoder}, tasks=tasks), data=tiny().data)
    config.data = dataclasses.replace(config.data, rows={"speech": 400, "transcript": 60, "examples": 4})
    with pytest.raises(UserError, match=message):
        Streaming(SimpleNamespace(config=config, model=config.model, directory="a run", tokenizer=tokenizer()))


def test_the_shipped_config_can_stream():
    config = c.load("configs/streaming_questions.py")
    run = SimpleNamespace(config=config, model=config.model, directory="a run", tokenizer=tokenizer())
    assert Streaming(run).chunk == pytest.approx(0.32)


def test_the_command_prints_utterances_and_latency(runs, tmp_path, capsys):
    soundfile.write(tmp_path / "one.wav", sounds(2.0), RATE)
    assert main(["predict", str(runs["ctc"].directory), "--stream", str(tmp_path / "one.wav"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["transcript"] and found["segments"][0]["end"] <= 2.0
    assert 0 < found["latency"]["p50"] <= found["latency"]["p99"] and found["latency"]["chunk"] == pytest.approx(0.16)
    stream = ["predict", str(runs["ctc"].directory), "--stream", str(tmp_path / "one.wav"), "--json"]
    assert main([*stream, "--silence", "30"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)["segments"]
    assert whole["text"].replace(" ", "") == found["transcript"].replace(" ", "")
    assert main(["predict", str(runs["ctc"].directory), "--stream", "x.wav", "--text", "what?"]) == 2
