"""Beams: exhaustive search and sums over all alignments prove them; one beam is greedy; the batch changes nothing."""

import itertools
import re
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_writers import DECODER, alone, encoded, joint, random_parameters, read

from mmjax.decode import (
    GREEDY,
    Beam,
    CTCPrefixes,
    Greedy,
    GreedyTransducer,
    Sampled,
    Sampling,
    TransducerBeam,
    beam_search,
    by_example,
    stages,
)
from mmjax.decode.beam import Knowledge
from mmjax.decode.scorers import Scorer
from mmjax.errors import UserError
from mmjax.models import LSTMPrediction, StatelessPrediction, TextDecoder
from mmjax.stream import BLANK, EMPTY, Stream
from mmjax.tasks import CTC, CausalLM, Transducer, Write
from mmjax.train import language_scores
from mmjax.train.language_scores import LanguageModelScorer
from mmjax.train.step import unboxed
from mmjax.train.validate import check_config
from mmjax.tree import override, part

END = 2


def language(seed=0, words=4):
    """Log-probabilities of the next word after each word; the last row is that of the first word."""
    return np.array(jax.nn.log_softmax(np.random.default_rng(seed).normal(size=(words + 1, words)) * 2))


def every_text(step, length):
    """Score and length by text; a text of `length` words needs no end."""
    found = {}
    for ids in itertools.product(range(step.shape[1]), repeat=length):
        ids = ids[: ids.index(END) + 1] if END in ids else ids
        found[ids] = sum(step[before, one] for before, one in zip((-1, *ids), ids, strict=False))
    return found


class Nothing(NamedTuple):
    """The cache of a model that remembers nothing."""

    def rows(self, order):
        return self

    def grown(self, room):
        return self


def search(steps, beams, length, **options):
    """Beam search in several languages at once: the texts of each, with their scores and those of their words."""
    steps = jnp.asarray(np.stack(steps))
    cache = Nothing()
    whose = jnp.repeat(jnp.arange(len(steps)), beams)[None]
    slots = jnp.arange(1, len(steps) + 1)[None]

    def step(tokens, cache):
        return tokens._replace(features=steps[whose, tokens.features]), cache

    logits = Stream(steps[None, :, -1], slots, slots * 0)
    return jax.jit(lambda: beam_search(step, logits, cache, beams, length, (END,), **options))()


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beams_that_hold_everything_rank_all_texts(penalty):
    steps = [language(0), language(1)]
    found = search(steps, 128, 4, penalty=penalty)
    for example, step in enumerate(steps):
        wanted = {ids: score / len(ids) ** penalty for ids, score in every_text(step, 4).items()}
        there = np.isfinite(found.total[example])
        texts = [tuple(i for i in row if i >= 0) for row in found.ids[example][there].tolist()]
        assert len(texts) == len(wanted) == 121 and set(texts) == wanted.keys()
        scores = found.scores[example][there].sum(-1) / np.array([len(ids) for ids in texts]) ** penalty
        np.testing.assert_allclose(scores, [wanted[ids] for ids in texts], rtol=1e-4)
        np.testing.assert_allclose(scores, sorted(wanted.values(), reverse=True), rtol=1e-4)
        np.testing.assert_allclose(np.exp(found.total[example][there]).sum(), 1.0, rtol=1e-4)


def test_a_search_ends_when_no_open_text_can_win():
    """The first word ends the text with probability 0.9: with one beam after one step, with two when two texts have ended."""
    step = np.log(np.array([[0.05, 0.04, 0.9, 0.01]] * 5))
    for beams in (1, 2):
        found = search([step, language(2)], beams, 16)
        assert found.ids[0, :, 0].tolist() == [2, 0][:beams]
        assert (found.ids[0, :, 2:] == -1).all()


def labels_of(path):
    return tuple(one for one, _ in itertools.groupby(path) if one)


def sums_over_alignments(probabilities):
    """The probability of each text, of ids that are classes less one."""
    found = {}
    for path in itertools.product(range(probabilities.shape[1]), repeat=len(probabilities)):
        text = tuple(one - 1 for one in labels_of(path))
        found[text] = found.get(text, 0.0) + np.prod(probabilities[range(len(path)), path])
    return found


def test_prefix_scores_are_sums_over_all_alignments():
    """Of packed examples with 4, 1 and 3 frames, one without, and empty frames; the blank is id 3, and no class is id 4."""
    logits = np.random.default_rng(0).normal(size=(1, 10, 4)).astype(np.float32) * 2
    segments = np.array([[1, 1, 1, 1, 0, 3, 4, 4, 4, 0]])
    texts = np.array([(0, 0, 1), (0, 1, 0), (2, 0, 2), (1, 1, 1)])

    @jax.jit
    def scores():
        prefixes = CTCPrefixes.of(Stream(logits, jnp.asarray(segments), None), 3, 5, jnp.array([[1, 2, 3, 4]]))
        state, found, order = prefixes.start(4), [], np.arange(4)
        for length in range(4):
            added = prefixes.score(state, jnp.tile(jnp.arange(5), (4, 4, 1)))
            found.append([x[:, np.argsort(order)] for x in (state.total, added, prefixes.end(state))])
            if length < 3:  # each text moves to the next beam with every token
                order = np.roll(order, 1)
                rows, tokens = np.roll(np.arange(4), 1), texts[order, length]
                state = prefixes.advance(state, *(jnp.tile(x, (4, 1)) for x in (rows, tokens)))
        return found

    found = jax.device_get(scores())
    for example in (1, 3, 4):
        known = sums_over_alignments(np.array(jax.nn.softmax(logits))[segments == example])
        for length, (total, added, ended) in enumerate(found):
            for number, text in enumerate(texts[:, :length].tolist()):
                begun = [sum(p for other, p in known.items() if other[:length] == tuple(text))]
                begun += [sum(p for other, p in known.items() if other[: length + 1] == (*text, c)) for c in range(5)]
                begun.append(known.get(tuple(text), 0.0))
                place = example - 1, number
                ours = np.exp([total[place], *added[place], ended[place]])
                ours[1:] *= begun[0]
                np.testing.assert_allclose(ours, begun, rtol=1e-4)
    assert all(not added[1].any() and not ended[1].any() for _, added, ended in found)  # without frames


def written(found):
    """By row and example: [(text, score, frames)], the best first."""
    texts = {}
    for place, one in by_example(jax.device_get(found)):
        texts[place] = []
        for ids, scores, _, frames in zip(*(x.T for x in one), strict=True):
            if np.isfinite(scores.sum()):
                texts[place].append((tuple(ids[ids != EMPTY].tolist()), scores.sum(), frames[ids != EMPTY].tolist()))
    return texts


def same_texts(these, those):
    assert [text for text, *_ in these] == [text for text, *_ in those]
    assert [frames for *_, frames in these] == [frames for *_, frames in those]
    np.testing.assert_allclose([score for _, score, _ in these], [score for _, score, _ in those], rtol=1e-3, atol=1e-4)


def rows_apart(streams, examples):
    """A batch whose first row has all examples, and each other row has one of them, at its beginning."""
    stream = jax.tree.map(np.array, streams["speech"])
    count = examples.segments.shape[1]
    features, segments, positions = (np.concatenate([x] + [np.zeros_like(x)] * count) for x in stream)
    for number in range(1, count + 1):
        own = stream.segments[0] == number
        for new, old in zip((features, segments, positions), stream, strict=True):
            new[number, : own.sum()] = old[0, own]
    segments[1:] = segments[1:] > 0
    slots = np.zeros((count + 1, count), np.int32)
    slots[0], slots[1:, 0] = examples.segments[0], 1
    return Stream(*map(jnp.asarray, (features, segments, positions))), Stream(
        *map(jnp.asarray, (slots, slots, slots * 0))
    )


def check_rows(decode, streams, examples):
    """The first row of `rows_apart` has the texts of the others, also if only one row is not empty. Returns them."""
    stream, slots = rows_apart(streams, examples)
    found = decode(stream, slots)
    count = examples.segments.shape[1]
    for number in range(1, count + 1):
        same_texts(found[0, number], found[number, 1])
    there = (np.arange(count + 1) == 2)[:, None]
    (only,) = decode(*(x._replace(segments=jnp.where(there, x.segments, 0)) for x in (stream, slots))).values()
    same_texts(only, found[0, 2])
    return {number: found[0, number] for number in range(1, count + 1)}


@part
class Alternating(Scorer):
    """Likes texts in which even and odd ids follow each other, and that end after an even one."""

    weight: float = 0.7

    def tables(self, tokenizer):
        return np.array([0.0, 1.0])

    def start(self, tables, shape, place):
        return jnp.ones(shape, jnp.int32)

    def score(self, tables, state, tokens):
        return self.weight * jnp.asarray(tables)[(tokens + state[..., None]) % 2]

    def advance(self, tables, state, tokens, grows):
        return jnp.where(grows, tokens % 2, state)

    def end(self, tables, state):
        return self.weight * jnp.asarray(tables)[(state + 1) % 2]

    def of(self, text):
        before = (1, *text)
        changes = sum((one + last) % 2 for last, one in zip(before, text, strict=False))
        return self.weight * (changes + (before[-1] + 1) % 2)


ALTERNATING = Alternating()


class Writers:
    """An attention decoder of 5 ids, of which the last one ends a text, and CTC, with random parameters."""

    def __init__(self, lengths):
        self.streams, self.examples = encoded(lengths, 8)
        self.ctc = CTC(reads="speech", outputs=5, blank=4)
        self.task = Write(reads=("speech",), decoder=TextDecoder(vocabulary=5, tied=False, **DECODER), end_token=4)
        seeds = enumerate((self.task, self.ctc), 3)
        self.parameters = [random_parameters(task, self.streams, self.examples, seed) for seed, task in seeds]

    def decoder(self, decoding, room=4):
        task = self.task.clone(decoding=decoding)

        @jax.jit
        def decode(speech, examples):
            encoded = read({"speech": speech}, None, examples)
            of_ctc = self.ctc.apply({"params": self.parameters[1]}, encoded)
            encoded = encoded._replace(tasks={"ctc": self.ctc}, outputs={"ctc": of_ctc})
            apply = partial(task.apply, {"params": self.parameters[0]})
            return task.decode(apply, encoded, None, {"transcript": room}, decoding.tables(None))

        return lambda *batch: written(decode(*batch))

    def texts(self, decoding, room=4):
        found = self.decoder(decoding, room)(self.streams["speech"], self.examples)
        return {number: texts for (_, number), texts in found.items()}


WRITERS = {
    "fused": Beam(ctc="ctc", scorers={"alternating": ALTERNATING}),
    "sampled": Sampled(sampling=Sampling(temperature=0.4, repetition_penalty=1.2, seed=5)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_texts_are_the_same_packed_and_alone(name):
    writers = Writers([4, 2, 7, 1])
    texts = check_rows(writers.decoder(WRITERS[name]), writers.streams, writers.examples)
    assert len({tuple(text for text, *_ in some) for some in texts.values()}) > 1


def test_one_beam_is_greedy_and_no_temperature_is_too():
    writers = Writers([4, 2, 7, 1])
    greedy = writers.texts(Greedy())
    for other in (Beam(beams=1, length_penalty=0.0), Sampled(sampling=GREEDY)):
        for number, texts in writers.texts(other).items():
            same_texts(texts, greedy[number])
    assert writers.texts(WRITERS["sampled"]) != greedy


@pytest.mark.parametrize(
    "decoding",
    [pytest.param(Greedy(), id="greedy", marks=pytest.mark.slow), pytest.param(Beam(beams=3), id="beam")],
)
def test_a_cache_that_grows_changes_nothing(monkeypatch, decoding):
    writers = Writers([4, 2])
    at_once = writers.texts(decoding, room=6)
    monkeypatch.setattr(stages, "FIRST", 2)
    for number, texts in writers.texts(decoding, room=6).items():
        same_texts(texts, at_once[number])
    assert any(len(text) > 3 for texts in at_once.values() for text, *_ in texts)


def test_joint_scores_are_sums_of_those_of_decoder_ctc_and_scorers():
    """Of all texts of at most 2 tokens, with beams that hold all; CTC scores a text that has its end."""
    writers, weight = Writers([3, 2]), 0.3
    options = dict(beams=96, length_penalty=0.0, shortlist=5)
    plain = writers.texts(Beam(**options), room=3)
    joint = writers.texts(Beam(ctc="ctc", ctc_weight=weight, scorers={"alternating": ALTERNATING}, **options), room=3)
    own = {"speech": writers.streams["speech"]}
    logits = writers.ctc.apply({"params": writers.parameters[1]}, read(own, None, writers.examples)).prediction
    compared = 0
    for number in (1, 2):
        decoder = {text: score for text, score, _ in plain[number]}
        aligned = sums_over_alignments(np.array(jax.nn.softmax(logits.features))[np.array(logits.segments) == number])
        for text, score, _ in joint[number]:
            if len(text) < 3 and text in aligned and text in decoder:
                ctc = np.log(aligned[text])
                wanted = (1 - weight) * decoder[text] + weight * ctc + ALTERNATING.of(text)
                assert score == pytest.approx(wanted, abs=1e-3)
                compared += 1
    assert compared > 10


@pytest.mark.slow
def test_a_language_model_takes_part_in_every_beam_search(monkeypatch):
    """All texts of at most 2 tokens, of an attention decoder and of a transducer, have its likelihoods in their scores."""
    decoder = TextDecoder(vocabulary=5, **DECODER | {"cross_attention": False})
    example = Stream(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), jnp.int32), jnp.arange(3)[None])
    params = jax.tree.map(lambda x: 3 * x, unboxed(decoder.init(jax.random.key(0), example)["params"]))
    known = {"params": params, "weight": np.float32(0.7), "bonus": np.float32(0.2)}
    opened = CausalLM(decoder=decoder), 2, params
    monkeypatch.setattr(language_scores, "_opened", lambda run: opened)
    monkeypatch.setattr(language_scores, "_tables", lambda scorer, tokenizer: known)
    scorers, predict = (
        {"model": LanguageModelScorer(run="of 5 ids", context=3)},
        jax.jit(partial(decoder.apply, {"params": params})),
    )

    def of(text):
        ids = jnp.array([[2, *text, 0, 0][:3]])
        logs = jax.nn.log_softmax(predict(example._replace(features=ids)).features)[0]
        return sum(0.7 * float(logs[n, token]) + 0.2 for n, token in enumerate(text))

    writing, transducers = Writers([3, 2]), Transducers([3, 1], StatelessPrediction(context=2))
    compared = 0
    for model, options in (
        (writing, Beam(beams=96, length_penalty=0.0, shortlist=5)),
        (transducers, TransducerBeam(beams=128, symbols=3)),
    ):
        plain, fused = (model.texts(replace(options, scorers=some), room=3) for some in ({}, scorers))
        for number in (1, 2):
            alone = {text: score for text, score, _ in plain[number]}
            for text, score, _ in fused[number]:
                if len(text) < 3 and text in alone:
                    assert score == pytest.approx(alone[text] + of(text), abs=1e-3)
                    compared += 1
    assert compared > 30


def attends(decoding, **changes):
    return Write(**dict(reads=("speech",), decoder=TextDecoder(vocabulary=128, **DECODER), decoding=decoding) | changes)


PREDICTIONS = pytest.mark.parametrize(
    "prediction", [StatelessPrediction(context=2), LSTMPrediction(layers=2)], ids=["stateless", "LSTM"]
)


class Transducers:
    """A transducer of 3 tokens with random parameters."""

    def __init__(self, lengths, prediction, durations=()):
        self.streams, self.examples = encoded(lengths, 6)
        self.task = Transducer(reads="speech", outputs=4, blank=3, width=8, predictor=prediction, durations=durations)
        self.apply = partial(self.task.apply, {"params": random_parameters(self.task, self.streams, self.examples)})

    def decoder(self, decoding, room=16):
        task, rooms, tables = self.task.clone(decoding=decoding), {"transcript": room}, decoding.tables(None)
        decode = jax.jit(lambda x, e: task.decode(self.apply, read({"speech": x}, None, e), None, rooms, tables))
        return lambda *batch: written(decode(*batch))

    def texts(self, decoding, room=16):
        found = self.decoder(decoding, room)(self.streams["speech"], self.examples)
        return {number: texts for (_, number), texts in found.items()}

    def every_text(self, number, longest):
        """The probability of each text of an example: the sum over all alignments."""
        frames = self.apply(alone(self.streams, number)[0]["speech"], method="project").features[0]
        step = jax.jit(partial(self.apply, method="logits"))
        texts = [text for n in range(longest + 1) for text in itertools.product(range(1, 4), repeat=n)]
        sums = dict.fromkeys(itertools.product(range(len(frames) + 1), texts), 0.0) | {(0, ()): 1.0}
        for time, text in itertools.product(
            range(len(frames)), texts
        ):  # the shorter texts first, so that each sum is complete
            logits = after_text(self.task, step, frames[time], text)[0]
            classes, skips = (np.array(jax.nn.softmax(x)) for x in (logits[:4], logits[4:]))
            for token, p in enumerate(classes):
                ways = zip(self.task.durations, skips, strict=True) if self.task.durations else [(int(token == 0), 1.0)]
                for duration, q in ways:
                    last = len(frames) - (token > 0)
                    key = min(time + duration, last), (*text, token) if token else text
                    if key in sums and (token or duration):
                        sums[key] += sums[time, text] * p * q
        return {tuple(one - 1 for one in text): sums[len(frames), text] for text in texts}


def after_text(task, step, frame, text):
    """Logits [1, V] of a frame after a text of classes."""
    memory = task.memory((1,))
    for label in (0, *text):
        logits, memory = step(frame[None], jnp.array([label]), memory)
    return logits


@pytest.mark.parametrize("durations", [(), (0, 1, 2)], ids=["no durations", "durations"])
@PREDICTIONS
@pytest.mark.slow
def test_transducer_beams_that_hold_everything_sum_over_all_alignments(prediction, durations):
    """Texts of at most 3 tokens, of packed examples with 3, 1 and 2 frames; a scorer adds what it should."""
    transducers = Transducers([3, 1, 2], prediction, durations)
    for scorers in ({}, {"alternating": ALTERNATING}):
        found = transducers.texts(TransducerBeam(beams=128, symbols=3, scorers=scorers), room=3)
        for number in (1, 2, 3):
            wanted = transducers.every_text(number, 3)
            assert {text for text, *_ in found[number]} == wanted.keys() and len(wanted) == 40
            for text, score, _ in found[number]:
                more = sum(scorer.of(text) for scorer in scorers.values())
                assert score == pytest.approx(np.log(wanted[text]) + more, abs=1e-3)
            scores = [score for _, score, _ in found[number]]
            assert scores == sorted(scores, reverse=True)


@PREDICTIONS
def test_one_transducer_beam_is_greedy(prediction):
    """Beside the score of the blank after the largest number of tokens of a frame, which greedy decoding leaves out."""
    transducers = Transducers([5, 3, 8, 1], prediction)
    greedy, beam = (
        {number: [(text, frames) for text, _, frames in texts] for number, texts in transducers.texts(one).items()}
        for one in (GreedyTransducer(symbols=2), TransducerBeam(beams=1, symbols=2))
    )
    assert beam == greedy and len({texts[0][0] for texts in greedy.values()}) > 2


@PREDICTIONS
def test_transducer_beams_are_the_same_packed_and_alone(prediction):
    transducers = Transducers([5, 3, 8, 1], prediction)
    decode = transducers.decoder(TransducerBeam(scorers={"alternating": ALTERNATING}))
    for texts in check_rows(decode, transducers.streams, transducers.examples).values():
        assert len({text for text, *_ in texts}) == 4


@PREDICTIONS
def test_greedy_decoding_with_durations_skips_frames(prediction):
    """As in a plain loop (Xu et al. 2023, algorithm 2), of packed examples; a blank with the duration 0 skips one frame."""
    durations = (0, 1, 2)
    streams, examples = encoded([9, 3, 8], 6)
    task = Transducer(reads="speech", outputs=4, blank=3, width=8, predictor=prediction, durations=durations)
    apply = partial(task.apply, {"params": random_parameters(task, streams, examples, seed=2)})
    decode = jax.jit(lambda: task.decode(apply, read(streams, None, examples), None, {"transcript": 16}))
    step = jax.jit(partial(apply, method="logits"))
    found, emitted = written(decode()), set()
    for number in (1, 2, 3):
        frames = apply(alone(streams, number)[0]["speech"], method="project").features[0]
        ids, places, score, time, symbols = [], [], 0.0, 0, 0
        while time < len(frames):
            scores = np.array(after_text(task, step, frames[time], ids))[0]
            tokens, skip = (np.array(jax.nn.log_softmax(x)) for x in (scores[:4], scores[4:]))
            best = int(tokens.argmax())
            chosen = int(skip.argmax())
            score += tokens[best] + skip[chosen]
            skipped = durations[chosen] if best else max(durations[chosen], 1)
            if best:
                ids.append(best)
                places.append(time)
            symbols = symbols + 1 if skipped == 0 else 0
            time += skipped
            if symbols == GreedyTransducer().symbols:
                time, symbols = time + 1, 0
            emitted.add((best > 0, durations[chosen]))
        ((text, total, at),) = found[0, number]
        assert (list(text), at) == ([one - 1 for one in ids], places)
        assert total == pytest.approx(score, rel=1e-4)
    assert emitted >= {(False, 0), (True, 0), (True, 2)}


def test_a_blank_whose_best_duration_is_0_skips_one_frame():
    """As in NeMo and transformers. The joint network is a table: a blank with the duration 0, then the token 3 with 1."""

    def row(*probabilities):
        return np.log(np.array(probabilities, np.float32))

    blank = row(0.6, 0.2, 0.1, 0.1, 0.5, 0.15, 0.05, 0.3)  # 4 classes, then the durations 0, 1, 2 and 4
    token = row(0.1, 0.1, 0.1, 0.7, 0.1, 0.7, 0.1, 0.1)
    frames = Stream(jnp.stack([blank, token, token])[None], jnp.ones((1, 3), jnp.int32), jnp.arange(3)[None])

    def apply(features, last=None, known=None, method=None):
        return features if method == "project" else (features, known)

    slots = jnp.ones((1, 1), jnp.int32)
    found = GreedyTransducer()(apply, frames, slots, 4, jnp.zeros, durations=(0, 1, 2, 4)).features
    there = found.ids != BLANK
    assert found.ids[there].tolist() == [3, 3] and found.frames[there].tolist() == [1, 2]
    assert found.scores.sum() == pytest.approx(np.log(0.6 * 0.5 * 0.7**4), rel=1e-5)


@pytest.mark.parametrize(
    "tasks, message",
    [
        (
            {"attention": attends(Beam(ctc="transcrip"))},
            "attention.decoding.ctc='transcrip' is no CTC task; did you mean 'transcript'?",
        ),
        ({"attention": attends(Beam(ctc="transducer"))}, "attention.decoding.ctc='transducer' is no CTC task"),
        (
            {"attention": attends(Beam(ctc="transcript"), reads=("image",))},
            "attention.decoding.ctc: 'transcript' writes 'transcript' from 'speech', but",
        ),
        ({"attention": attends(Beam(ctc_weight=1.0))}, "attention.decoding.ctc_weight=1.0 is not between 0 and 1"),
        ({"attention": attends(Sampled(sampling=Sampling(top_p=0.0)))}, "top_p cannot be 0.0"),
        ({"transducer": Transducer(width=8, durations=(0, 2))}, "transducer.durations=(0, 2) must have 0 and 1"),
    ],
)
def test_decodings_that_cannot_work_are_refused(tasks, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_config(joint(**tasks))


def test_a_decoding_is_chosen_on_the_command_line():
    key = "--model.tasks.attention.decoding"
    changed = override(joint(), [key, "Beam", f"{key}.beams", "8", f"{key}.ctc", "transcript"])
    assert changed.model.tasks["attention"].decoding == Beam(beams=8, ctc="transcript")
    check_config(changed)


def test_an_example_without_speech_is_scored_by_the_decoder_alone():
    """Whether other examples of its row have speech changes nothing."""
    logits = np.random.default_rng(0).normal(size=(1, 3, 4)).astype(np.float32)
    frames = Stream(jnp.asarray(logits), jnp.array([[1, 1, 1]]), None)
    prefixes = CTCPrefixes.of(frames, 3, 5, jnp.array([[1, 2]]))
    knowledge = Knowledge(ctc=prefixes, ctc_weight=0.5)
    best = jnp.log(jnp.full((2, 1, 5), 0.2))
    tokens, ending = jnp.tile(jnp.arange(5), (2, 1, 1)), jnp.zeros((2, 1, 5), bool)
    added = knowledge.added(knowledge.start((2, 1), 2), best, tokens, ending)
    np.testing.assert_allclose(added[1], best[1], rtol=1e-6)
    assert not np.allclose(added[0], best[0])
