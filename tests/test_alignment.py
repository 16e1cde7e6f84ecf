"""Times of words: alignments against exhaustive search and plain loops, words of all tokenizers, subtitles, `mmjax align`."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.cli import main
from mmjax.data.audio import write_audio
from mmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from mmjax.data.text import Tokenizer
from mmjax.decode import (
    Spoken,
    TimedToken,
    Timings,
    Word,
    Written,
    attention_weights,
    forced_alignment,
    warped,
    word_spans,
)
from mmjax.decode.subtitles import FORMATS
from mmjax.errors import UserError
from mmjax.run import Run
from mmjax.stream import EMPTY, Stream
from mmjax.tasks import CTC, Facts, Item
from mmjax.tasks.metrics import calibration_gaps, words_right
from mmjax.timestamps import word_times

CLASSES = 4


def row(lengths, room):
    """Segments [1, room] of examples of these lengths, with an empty position behind the second."""
    segments = np.zeros((1, room), np.int32)
    at = 0
    for number, length in enumerate(lengths, 1):
        segments[0, at : at + length] = number
        at += length + (number == 2)
    return jnp.asarray(segments)


# (labels, frames); the second and the last text do not fit, and one is empty.
TEXTS = [([1, 2], 5), ([1, 1], 2), ([1, 1, 2], 6), ([3], 1), ([0], 3), ([2, 2, 2], 6), ([1, 3, 1, 2], 3)]


@pytest.fixture(scope="module")
def aligned():
    """Logits of one row with all texts, and their alignment: (logits, segments, labels' segments, spans)."""
    frames, labels = (row(x, sum(x) + 3) for x in ([n for _, n in TEXTS], [len(y) for y, _ in TEXTS]))
    classes = np.zeros(labels.shape, np.int32)
    classes[np.asarray(labels) > 0] = list(itertools.chain(*(y for y, _ in TEXTS)))
    logits = 2 * np.random.default_rng(0).normal(size=(*frames.shape, CLASSES)).astype(np.float32)
    align = jax.jit(lambda *x: forced_alignment(Stream(x[0], x[1], x[1]), Stream(x[2], x[3], x[3])).features)
    return logits, frames, labels, jax.device_get(align(logits, frames, jnp.asarray(classes), labels)), align


def best_path(log_probabilities, labels):
    """The most probable of all paths that give the labels, or None."""
    paths = itertools.product(sorted({0, *labels}), repeat=len(log_probabilities))
    fit = [path for path in paths if [c for c, _ in itertools.groupby(path) if c] == labels]
    return max(fit, key=lambda path: log_probabilities[np.arange(len(path)), path].sum(), default=None)


def test_the_alignment_of_ctc_is_the_best_of_all_paths(aligned):
    logits, frames, labels, spans, _ = aligned
    for number, (text, _) in enumerate(TEXTS, 1):
        own = np.asarray(labels[0] == number)
        start, stop, confidence = (x[0, own] for x in (spans.start, spans.stop, spans.confidence))
        of_frames = np.asarray(jax.nn.log_softmax(logits[0, np.asarray(frames[0] == number)]))
        path = best_path(of_frames, text)
        if path is None or text == [0]:
            assert (start == -1).all() and (stop == -1).all() and (confidence == 0).all()
            continue
        at, runs = 0, []
        for label, group in itertools.groupby(path):
            runs.append((label, at, at := at + len(list(group))))
        runs = [run for run in runs if run[0]]
        assert list(zip(text, start.tolist(), stop.tolist(), strict=True)) == runs
        for found, (label, first, last) in zip(confidence, runs, strict=True):
            assert found == pytest.approx(np.exp(of_frames[first:last, label]).mean(), abs=1e-6)


def test_an_alignment_is_the_same_alone(aligned):
    logits, frames, labels, spans, align = aligned
    for number in (3, 6):
        own = np.asarray(frames[0] == number), np.asarray(labels[0] == number)
        alone = [np.zeros_like(x) for x in (logits, frames, labels, labels)]
        count, length = own[0].sum(), own[1].sum()
        alone[0][0, 1 : count + 1], alone[1][0, 1 : count + 1] = logits[0, own[0]], 1
        alone[2][0, :length], alone[3][0, :length] = TEXTS[number - 1][0], 1
        found = align(*alone)
        for one, packed in zip(found[1:], spans[1:], strict=True):
            np.testing.assert_allclose(one[0, :length], packed[0, own[1]], atol=1e-6)


def warp_by_loops(weights):
    """Starts of the tokens on the path with the largest sum (Whisper's `dtw`)."""
    tokens, frames = weights.shape
    best = np.full((tokens + 1, frames + 1), -np.inf)
    best[0, 0] = 0
    for i, j in itertools.product(range(tokens), range(frames)):
        best[i + 1, j + 1] = weights[i, j] + max(best[i, j], best[i, j + 1], best[i + 1, j])
    i, j, starts = tokens, frames, [0] * tokens
    while i and j:
        starts[i - 1] = j - 1
        i, j = max([(i, j - 1), (i - 1, j), (i - 1, j - 1)], key=lambda cell: best[cell])
    return starts


def test_dynamic_time_warping_equals_a_plain_loop_for_each_example():
    sizes = [(3, 6), (1, 4), (4, 4), (5, 3)]  # tokens, frames; the last tokens share frames
    tokens, frames = (row(x, sum(x) + 2) for x in zip(*sizes, strict=True))
    weights = np.random.default_rng(0).normal(size=(1, tokens.shape[1], frames.shape[1])).astype(np.float32)
    start, stop = jax.jit(lambda w, t, f: warped(w, Stream(t, t, t), f))(weights, tokens, frames)
    for number, (_, count) in enumerate(sizes, 1):
        own = np.asarray(tokens[0] == number), np.asarray(frames[0] == number)
        starts = warp_by_loops(weights[0][np.ix_(*own)])
        assert start[0, own[0]].tolist() == starts
        assert stop[0, own[0]].tolist() == [*starts[1:], count]
    assert (np.asarray(start)[np.asarray(tokens) == 0] == -1).all()


def test_attention_weights_are_normalised_over_tokens_and_smoothed_over_frames():
    """As in Whisper's timing.py, example by example. Two frames are too few for the filter."""
    sizes, heads = [(5, 12), (3, 2)], ((0, 1), (1, 3))
    tokens, frames = (row(x, sum(x) + 2) for x in zip(*sizes, strict=True))
    draw = np.random.default_rng(0)
    queries = draw.normal(size=(2, 1, 4, tokens.shape[1], 3)).astype(np.float32)
    keys = draw.normal(size=(2, 1, 2, frames.shape[1], 3)).astype(np.float32)
    found = jax.jit(attention_weights, static_argnums=(2, 5))(queries, keys, heads, tokens, frames, 0.7)
    for number, (_, count) in enumerate(sizes, 1):
        own, those = np.asarray(tokens[0] == number), np.asarray(frames[0] == number)
        expected = 0
        for layer, head in heads:
            scores = 0.7 * queries[layer, 0, head, own] @ keys[layer, 0, head // 2, those].T
            weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            normal = (weights - weights.mean(0)) / weights.std(0)
            if count > 3:
                padded = np.pad(normal, ((0, 0), (3, 3)), mode="reflect")
                normal = np.median([padded[:, i : i + count] for i in range(7)], axis=0)
            expected = expected + normal / len(heads)
        np.testing.assert_allclose(np.asarray(found)[0][np.ix_(own, those)], expected, atol=1e-4)
    assert (np.asarray(found)[0][np.asarray(tokens[0]) != 1][:, np.asarray(frames[0]) == 1] == 0).all()


# Words. ---------------------------------------------------------------------------------------------------


def byte_level():
    """As GPT-2's and Whisper's."""
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["the quick fox, the quick hen"], trainer)
    return HuggingFaceTokenizer(made.to_str().encode())


def by_characters():
    library = pytest.importorskip("tokenizers")
    vocabulary = {x: i for i, x in enumerate(" abcdefghijklmnopqrstuvwxyz,.'ñ世界你好สวัดี😀é")}
    made = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=[]))
    made.decoder = library.decoders.Fuse()
    return HuggingFaceTokenizer(made.to_str().encode())


def sentencepiece():
    return Tokenizer.train(["the quick fox", "the quick hen"], 320, byte_fallback=True)


WORDS = {
    "the quick, fox's end.": ["the", "quick,", "fox's", "end."],
    "你好,世界": ["你", "好,", "世", "界"],
    "สวัสดี": ["ส", "วั", "ส", "ดี"],
    "hen 你好 ñé": ["hen", "你", "好", "ñé"],
    "a 😀 fox": ["a", "😀", "fox"],
}


@pytest.mark.parametrize("made", [byte_level, by_characters, sentencepiece])
@pytest.mark.parametrize("text", WORDS)
def test_every_token_gives_its_time_to_its_word(text, made):
    tokenizer = made()
    ids = tokenizer.encode(text)
    tokens = [TimedToken(id, 0.9, 2 * n, 2 * n + 1) for n, id in enumerate(ids)]
    spoken = Spoken(tokens, tokenizer.decode, 0.5)
    words = spoken.words()
    assert [word.word for word in words] == WORDS[text] == [text[slice(*span)] for span in word_spans(text)]
    last = 0.0
    for word in words:
        assert last <= word.start < word.end <= len(ids)
        last = word.start
    assert words[-1].end >= len(ids) - 2
    counted = [round(np.log(word.confidence) / np.log(0.9)) for word in words]  # the tokens of each word
    assert all(count >= 1 for count in counted) and sum(counted) <= len(ids) + len(words)
    characters = spoken.timings(100.0).characters
    assert "".join(one.word for one in characters) == "".join(text.split())


def test_a_word_has_the_time_of_its_letters_and_the_product_of_their_probabilities():
    pieces = {1: "fo", 2: "x", 3: ", ", 4: "hen", 5: "", 6: "<s>"}
    tokens = [TimedToken(1, 0.5, 2, 4), TimedToken(2, 0.5, 4, 6), TimedToken(3, 0.1, 6, 20), TimedToken(4, 0.9, 20, 22)]

    def decode(ids):
        return "".join(pieces[i] for i in ids)

    words = Spoken(tokens, decode, 0.1).words()
    assert words == (Word("fox,", 0.2, 0.6, 0.25), Word("hen", 2.0, 2.2, 0.9))
    found = Spoken(tokens, decode, 0.1, 2.1).timings(2.1, "Fox, HEN")
    assert [word.word for word in found.words] == ["Fox,", "HEN"] and found.words[-1].end == 2.1
    assert [segment.word for segment in found.segments] == ["Fox,", "HEN"]  # a pause of 1.4 s
    assert [one.start for one in found.characters][:3] == [0.2, 0.3, 0.4]
    unknown = Spoken([token._replace(start=-1, stop=-1) for token in tokens], decode, 0.1).words()
    assert [(word.start, word.end, word.confidence) for word in unknown] == [(None, None, 0.25), (None, None, 0.9)]


def test_words_right_and_the_gaps_of_their_calibration():
    assert words_right([*"abcd"], [*"axecd"]) == [True, False, False, True, True]
    assert words_right([], ["a"]) == [False] and words_right(["a"], []) == []
    # Two words in the bin of 0.9 to 1, of which one is right, and a wrong one in the bin of 0.1 to 0.2.
    gaps = calibration_gaps([0.95, 0.95, 0.15], [True, False, False])
    np.testing.assert_allclose(gaps, [0, 0.15, *[0] * 7, 0.9])
    assert not calibration_gaps([1.0, 0.0], [True, False]).any()


def test_a_written_text_has_words_and_its_evaluation_their_calibration():
    """Words have times where the decoder knows frames. Here 2 of 3 words are right, with confidences of 1, 1 and 0.25."""
    tokenizer, task = sentencepiece(), CTC(label="transcript")
    ids = np.array([EMPTY, *tokenizer.encode("the quick hen"), EMPTY], np.int32)
    sure = np.where(np.arange(len(ids)) == len(ids) - 2, 0.25, 1.0).astype(np.float32)
    written = Written(*(x[:, None] for x in (ids, np.log(sure), sure, np.arange(len(ids), dtype=np.int32))))
    facts = Facts(tokenizer, seconds={"speech": 0.04})
    found = task.prediction(written, facts)
    shown = task.shown(found, facts)["words"]
    assert [(word["word"], word["confidence"]) for word in shown] == [("the", 1.0), ("quick", 1.0), ("hen", 0.25)]
    assert shown[0]["start"] >= 0.04 and shown[-1]["end"] == pytest.approx(0.04 * (len(ids) - 1))
    measured = task.statistics([Item(0, "the quick fox", found)])["ece"]
    assert measured(np.ones((1, 1))) == pytest.approx([0.25 / 3])
    unknown = task.prediction(written._replace(frames=np.full_like(written.frames, -1)), facts)
    assert "words" not in task.shown(unknown, facts) and unknown.best.words[2].confidence == 0.25


# Files. ---------------------------------------------------------------------------------------------------

WORDS_TIMED = (Word("Say", 0.5, 0.9, 1.0), Word('"a<b".', 0.9, 0.9, 0.5), Word("Then", 3661.25, 3662.0, 0.8))
SAID = Timings(
    'Say "a<b". Then',
    3663.0,
    WORDS_TIMED,
    (),
    (Word('Say "a<b".', 0.5, 0.9, 0.75), Word("Then", 3661.25, 3662.0, 0.8)),
)


def test_subtitles():
    assert FORMATS[".srt"](SAID) == (
        '1\n00:00:00,500 --> 00:00:00,900\nSay "a<b".\n\n2\n01:01:01,250 --> 01:01:02,000\nThen\n'
    )
    assert FORMATS[".vtt"](SAID) == (
        'WEBVTT\n\n00:00:00.500 --> 00:00:00.900\nSay "a&lt;b".\n\n01:01:01.250 --> 01:01:02.000\nThen\n'
    )
    assert json.loads(FORMATS[".json"](SAID))["words"][1] == dict(word='"a<b".', start=0.9, end=0.9, confidence=0.5)


def test_a_textgrid_has_intervals_without_gaps():
    lines = [line.strip() for line in FORMATS[".textgrid"](SAID).splitlines()]
    assert lines[:2] == ['File type = "ooTextFile"', 'Object class = "TextGrid"'] and "xmax = 3663.000" in lines
    values = [line.partition(" = ")[2] for line in lines if line.startswith(("xmin", "xmax", "text"))]
    words = values[values.index('"Then"', values.index('"Then"') + 1) - 14 :]
    intervals = [words[i : i + 3] for i in range(0, len(words), 3)]
    assert [(text, float(start)) for start, _, text in intervals] == [
        ('""', 0.0),
        ('"Say"', 0.5),
        ('"""a<b""."', 0.9),
        ('""', 0.901),  # a word without length gets a millisecond
        ('"Then"', 3661.25),
        ('""', 3662.0),
    ]
    assert all(a[1] == b[0] and float(a[0]) < float(a[1]) for a, b in itertools.pairwise(intervals))


# Runs. ----------------------------------------------------------------------------------------------------

RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * RATE).astype(np.float32)
QUESTION = "Is there a circle?"


def test_a_run_aligns_a_known_text(run, tmp_path, capsys):
    opened = Run(run)
    found = opened.align(NOISE, QUESTION)
    assert [word.word for word in found.words] == QUESTION.split() and found.text == QUESTION
    edges = [time for word in found.words for time in (word.start, word.end)]
    assert edges == sorted(edges) and edges[0] >= 0 and edges[-1] <= found.duration == 3.0
    assert opened.align(NOISE, " ").words == ()
    with pytest.raises(UserError, match="tokens, which do not fit into 0.5 s of speech"):
        opened.align(NOISE[: RATE // 2], QUESTION * 3)
    with pytest.raises(UserError, match="no task 'answer' of this run aligns texts"):
        opened.align(NOISE, QUESTION, task="answer")
    predicted = opened.predict(speech=NOISE) | {"transcript": "a circle"}
    assert [word.word for word in word_times(opened, predicted, speech=NOISE)["transcript"].words] == ["a", "circle"]

    write_audio(tmp_path / "one.wav", NOISE, RATE)
    asked = ["align", str(run), "--speech", str(tmp_path / "one.wav"), "--text", QUESTION]
    assert main([*asked, "-o", str(tmp_path / "one.srt"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [word["word"] for word in printed["words"]] == QUESTION.split()
    assert (tmp_path / "one.srt").read_text("utf-8") == FORMATS[".srt"](found)
    assert main([*asked, "-o", str(tmp_path / "one.txt")]) == 2
    assert "should end with .srt, .vtt, .TextGrid or .json" in capsys.readouterr().err
