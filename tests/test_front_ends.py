"""Front ends against their references, packed and alone."""

import functools

import jax
import numpy as np
import pytest
import scipy.fft
from test_models import speech

from mmjax.data.layout import Layout, Rows
from mmjax.models import MFCC, KaldiFilterBank, LogMel, NeMoLogMel, Waveform, WhisperLogMel
from mmjax.stream import Stream

HOPS = 60
ALL = [
    LogMel(),
    WhisperLogMel(bins=128),
    NeMoLogMel(),
    KaldiFilterBank(),
    KaldiFilterBank(normalise=False),
    MFCC(),
    Waveform(hop=160),
]


def recording(seed=0, hops=HOPS):
    """Something with the dynamics of speech: a gliding tone that swells, noise, and a silent beginning."""
    time = np.arange(hops * 160) / 16_000
    noise = np.random.default_rng(seed).normal(size=len(time))
    voice = np.sin(2 * np.pi * (200 + 900 * time) * time) * np.sin(np.pi * time / time[-1]) ** 2
    return np.where(time < 0.03, 0.0, 0.3 * voice + 0.003 * noise).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _run(front_end, stream):
    return front_end.apply({}, stream)


def run(front_end, stream):
    return jax.device_get(_run(front_end, stream))


def frames_of(front_end, samples):
    hops = samples.reshape(1, -1, 160)
    segments = np.ones(hops.shape[:2], np.int32)
    frames = run(front_end, Stream(hops, segments, np.arange(hops.shape[1])[None]))
    return frames.features[frames.segments > 0]


@pytest.mark.reference
@pytest.mark.parametrize("bins", [80, 128])
def test_whisper_log_mel_equals_whisper(bins):
    transformers = pytest.importorskip("transformers")
    reference = transformers.WhisperFeatureExtractor(feature_size=bins)
    theirs = reference(recording(), sampling_rate=16_000, padding="do_not_pad", return_tensors="np").input_features
    ours = frames_of(WhisperLogMel(bins=bins), recording())
    np.testing.assert_allclose(ours, np.asarray(theirs)[0].T, atol=1e-4)


@pytest.mark.reference
def test_nemo_log_mel_equals_parakeet():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.ParakeetFeatureExtractor()(recording(), sampling_rate=16_000, return_tensors="pt")
    mask = theirs.attention_mask[0].bool()
    ours = frames_of(NeMoLogMel(), recording())
    assert len(ours) == int(mask.sum()) == HOPS
    np.testing.assert_allclose(ours, theirs.input_features[0][mask].numpy(), atol=1e-3)


@pytest.mark.reference
def test_kaldi_filter_bank_equals_transformers_kaldi():
    transformers = pytest.importorskip("transformers")
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80)
    theirs = extractor._extract_fbank_features(recording())
    np.testing.assert_allclose(frames_of(KaldiFilterBank(normalise=False), recording()), theirs, atol=1e-3)


@pytest.mark.reference
@pytest.mark.parametrize("hops", [HOPS, HOPS + 1])
def test_normalised_kaldi_filter_bank_equals_that_of_w2v_bert(hops):
    transformers = pytest.importorskip("transformers")
    extract = transformers.SeamlessM4TFeatureExtractor()
    theirs = extract(recording(hops=hops), sampling_rate=16_000, return_tensors="np").input_features[0]
    # Theirs stacks two frames, and continues an odd number of them with zeros.
    np.testing.assert_allclose(
        frames_of(KaldiFilterBank(), recording(hops=hops)), theirs.reshape(-1, 80)[: hops - 2], atol=1e-4
    )


@pytest.mark.reference
def test_waveform_is_normalised_as_wav2vec_hears_it():
    transformers = pytest.importorskip("transformers")
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    theirs = extract(recording(), sampling_rate=16_000, return_tensors="np").input_values[0]
    windows = np.lib.stride_tricks.sliding_window_view(theirs, 400)[::160]
    np.testing.assert_allclose(frames_of(Waveform(hop=160), recording()), windows, atol=1e-5)


LENGTHS = (400, 401, 559, 561, 719, 720, 15_999, 16_000, 16_001, 16_079, 16_080, 16_123, 16_159)


def nemo(samples):
    transformers = pytest.importorskip("transformers")
    found = transformers.ParakeetFeatureExtractor()(samples, sampling_rate=16_000, return_tensors="pt")
    return found.input_features[found.attention_mask.bool()].numpy()


def w2v_bert(samples):
    transformers = pytest.importorskip("transformers")
    frames = transformers.SeamlessM4TFeatureExtractor()._extract_fbank_features(samples)
    return (frames - frames.mean(0)) / np.sqrt(frames.var(0, ddof=1) + 1e-7)


def wav2vec(samples):
    transformers = pytest.importorskip("transformers")
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    heard = extract(samples, sampling_rate=16_000, return_tensors="np").input_values[0]
    return np.lib.stride_tricks.sliding_window_view(heard, 400)[::320]


def whisper(samples):
    transformers = pytest.importorskip("transformers")
    extract = transformers.WhisperFeatureExtractor()
    return extract(samples, sampling_rate=16_000, max_length=32_000, return_tensors="np").input_features[0].T


@pytest.mark.reference
@pytest.mark.parametrize(
    "front_end, reference, pad",
    [
        (NeMoLogMel(), nemo, None),
        (KaldiFilterBank(), w2v_bert, None),
        (Waveform(), wav2vec, None),
        (WhisperLogMel(), whisper, 200),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_recordings_of_any_length_packed_into_one_row_have_the_frames_of_the_reference(front_end, reference, pad):
    heard = [recording(seed=n, hops=110)[500 : 500 + n] for n in LENGTHS]
    hops = sum(-(-(pad or -(-n // front_end.hop)) // 8) * 8 for n in LENGTHS)
    geometry = dict(hop=front_end.hop, window=400, align=8, pad=pad)
    layout = Layout.of({"speech": hops, "examples": len(heard)}, geometry={"speech": geometry})
    rows = Rows(layout, 1)
    for number, samples in enumerate(heard):
        rows.write(0, {"speech": layout.streams["speech"].cut(samples), "examples": (np.array([number]), np.zeros(1))})
    frames = run(front_end, rows.batch["speech"])
    for number, samples in enumerate(heard, 1):
        ours, theirs = frames.features[frames.segments == number], reference(samples)
        assert len(ours) == len(theirs), len(samples)
        if len(theirs) > 2 or pad:  # of fewer, theirs divides by a variance of next to nothing
            np.testing.assert_allclose(ours, theirs, atol=1e-3, err_msg=str(len(samples)))


@pytest.mark.parametrize("front_end", [NeMoLogMel(), KaldiFilterBank(), Waveform(hop=160), WhisperLogMel()])
def test_statistics_of_an_example_do_not_depend_on_how_many_stand_before_it(front_end):
    """Most of them may have text alone, so that an example's number is larger than its row is long."""
    hops, places = recording().reshape(1, HOPS, 160), np.arange(HOPS)[None]
    first, later = (run(front_end, Stream(hops, np.full((1, HOPS), number), places)) for number in (1, HOPS + 7))
    np.testing.assert_array_equal(first.features, later.features)


def kaldi_mfcc_in_float64(samples, bins=23, coefficients=13):
    """Kaldi's feat/feature-mfcc.cc step by step: no dither, no energy."""
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64) * 2**15, 400)[::160]
    frames = frames - frames.mean(-1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(frames * window, 512)) ** 2

    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), bins + 2)
    energies = np.zeros((len(frames), bins))
    for bin_ in range(bins):
        left, centre, right = edges[bin_ : bin_ + 3]
        for k in range(257):
            at = mel(k * 16_000 / 512)
            if left < at < right:
                weight = (at - left) / (centre - left) if at <= centre else (right - at) / (right - centre)
                energies[:, bin_] += weight * power[:, k]
    logarithm = np.log(np.maximum(energies, np.finfo(np.float32).eps))
    lifter = 1 + 11 * np.sin(np.pi * np.arange(coefficients) / 22)
    return scipy.fft.dct(logarithm, norm="ortho")[:, :coefficients] * lifter


@pytest.mark.parametrize("bins, coefficients", [(23, 13), (40, 40)])
def test_mfcc_equals_kaldi_in_float64(bins, coefficients):
    ours = MFCC(log_mel=KaldiFilterBank(bins=bins, normalise=False), coefficients=coefficients)
    expected = kaldi_mfcc_in_float64(recording(), bins, coefficients)
    # 1e-3 of the coefficients' scale, about 100 for the 0th.
    np.testing.assert_allclose(frames_of(ours, recording()), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("front_end", ALL, ids=lambda f: type(f).__name__)
def test_an_example_has_the_same_features_packed_and_alone(front_end):
    lengths = [16, 3, 9, 5, 30]
    packed = speech(*lengths)
    louder = packed._replace(features=packed.features * np.where(packed.segments == 3, np.float32(100), 1)[..., None])
    for stream, scale in ((packed, {}), (louder, {3: 100.0})):
        out = run(front_end, stream)
        for number, length in enumerate(lengths, 1):
            alone = speech(length, room=64)
            alone = run(front_end, alone._replace(features=alone.features * np.float32(scale.get(number, 1.0))))
            ours = out.features[out.segments == number]
            assert len(ours) in (length, length - 2)
            np.testing.assert_allclose(ours, alone.features[alone.segments > 0], atol=2e-5)
    assert not np.any(out.features[out.segments == 0])


@pytest.mark.parametrize("front_end", ALL, ids=lambda f: type(f).__name__)
def test_a_row_of_silence_and_emptiness_is_finite(front_end):
    silent = speech(12, room=32)
    silent = silent._replace(features=np.zeros_like(silent.features))
    assert np.isfinite(run(front_end, silent).features).all()


def test_the_power_spectrum_is_computed_in_float32_whatever_the_default():
    with jax.default_matmul_precision("bfloat16"):
        text = jax.jit(lambda s: LogMel().apply({}, s)).lower(speech(8)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)
