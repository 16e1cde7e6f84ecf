"""CTC prefix beams against sums over all alignments; n-gram models, phrases and lists against plain Python."""

import dataclasses
import gzip
import itertools
import json
import math
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from untrained import language_model as untrained_language_model

from mmjax import cli
from mmjax import config as c
from mmjax.data.text import Tokenizer
from mmjax.decode import BestPath, Choices, NGram, Phrases, PrefixBeam, Written, by_example
from mmjax.decode.arpa import Arpa, Level, read_arpa, write_arpa
from mmjax.decode.backoff import perplexities
from mmjax.decode.kneser_ney import train
from mmjax.decode.ngram import Tokens
from mmjax.decode.phrases import Several, Tree, allowed, boosts
from mmjax.decode.rescoring import next_tokens, rescored
from mmjax.decode.trie import trie
from mmjax.errors import UserError
from mmjax.stream import EMPTY, Stream
from mmjax.train import language_scores
from mmjax.train.step import unboxed

WORDS = ["<s>", "</s>", "<unk>", "a", "b", "c", "d"]
LN10 = math.log(10)
PAGE = (pathlib.Path(__file__).parent.parent / "docs" / "decoding.md").read_text("utf-8").split("## Attention")[0]


def random_model(generator, order, words=WORDS):
    """A model in which each n-gram is missing with the same probability, so that also beginnings and ends of others miss."""
    levels = []
    for n in range(1, order + 1):
        every = np.array(list(itertools.product(range(len(words)), repeat=n)), np.int32)
        kept = every if n == 1 else every[generator.random(len(every)) < 60 / len(every)]
        backoff = generator.normal(size=len(kept)) if n < order else np.zeros(len(kept))
        levels.append(Level(kept, -3 * generator.random(len(kept)), backoff))
    return Arpa(list(words), levels)


def plain(model):
    """(word, context) -> ln p, by Katz's recursion over dictionaries."""
    probability, backoff = {}, {}
    for ids, p, b in model.levels:
        probability |= dict(zip(map(tuple, ids.tolist()), p.tolist(), strict=True))
        backoff |= dict(zip(map(tuple, ids.tolist()), b.tolist(), strict=True))
    longest = len(model.levels) - 1

    def of(word, context):
        context = tuple(context)[max(len(context) - longest, 0) :]
        if (*context, word) in probability:
            return probability[*context, word] * LN10
        return backoff.get(context, 0.0) * LN10 + of(word, context[1:])

    return of


@pytest.mark.parametrize("order", range(1, 6))
def test_n_grams_equal_a_plain_back_off(order, tmp_path):
    generator = np.random.default_rng(order)
    model = random_model(generator, order)
    write_arpa(tmp_path / "model.arpa.gz", model)
    found = read_arpa(tmp_path / "model.arpa.gz")
    tree, wanted, look_up = trie(found), plain(found), jax.jit(lambda tree, node, word: tree.look_up(node, word))
    nodes, texts = np.full(40, tree.begin), [[0]] * 40
    for _ in range(8):
        words = generator.integers(1, len(WORDS), (40, 3))
        likelihood, after = look_up(tree, nodes, words)
        expected = [[wanted(word, text) for word in some] for text, some in zip(texts, words.tolist(), strict=True)]
        np.testing.assert_allclose(likelihood, expected, atol=1e-4)
        texts = [[*text, int(some[0])] for text, some in zip(texts, words, strict=True)]
        nodes = np.asarray(after)[:, 0]


GOOD = """some words before

\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.6\t</s>
-0.7\ta\t-0.1

\\2-grams:
-0.2\t<s> a
-0.3 a </s>

\\end\\
"""


def test_an_arpa_file(tmp_path):
    (tmp_path / "a.arpa").write_text(GOOD)
    model = read_arpa(tmp_path / "a.arpa")
    assert model.words == ["<unk>", "<s>", "</s>", "a"]
    assert model.levels[1].ids.tolist() == [[1, 3], [3, 2]]
    assert plain(model)(3, [1]) == pytest.approx(-0.2 * LN10)
    assert plain(model)(3, [3]) == pytest.approx(-0.8 * LN10)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\\data\\", "", "no line \\\\data"),
        ("ngram 1=4", "ngram one=4", "line 4: 'ngram one=4' should be 'ngram 1='"),
        ("ngram 1=4\nngram 2=2", "", "no line such as 'ngram 1=1000'"),
        ("ngram 1=4", "ngram 1=5", r"there are 4 1-grams, but \\data\\ states 5"),
        ("\\2-grams:", "\\3-grams:", "'.3-grams:' should be '.2-grams:'"),
        ("\\end\\", "", "the file ends before .end.; it is incomplete"),
        ("\\end\\", "\\3-grams:", "should be '.end.'"),
        ("-0.3 a </s>", "-0.3 a b </s> 0 0", "line 15: 6 fields, but a 2-gram has a probability, 2 words"),
        ("-0.3 a </s>", "-0.3 a b", "line 15: 'b' is not among the 1-grams"),
        ("-0.3 a </s>", "-0.2 <s> a", "'<s> a' occurs a second time"),
        ("-0.7\ta", "x\ta", "line 11: 'x' is no logarithm of a probability"),
        ("-0.7\ta", "0.7\ta", "line 11: '0.7' is no logarithm of a probability"),
        ("-0.7\ta\t-0.1", "-0.7\ta\tnan", "line 11: 'nan' is no logarithm of a back-off"),
    ],
)
def test_what_is_wrong_with_an_arpa_file_is_named(old, new, message, tmp_path):
    assert old in GOOD
    (tmp_path / "a.arpa").write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "a.arpa")


@pytest.mark.parametrize(
    "data, message",
    [
        (None, "cannot read the n-gram model .*No such file"),
        (gzip.compress(GOOD.encode())[:-20], "cannot read the n-gram model"),
        (b"mmap lm http://kheafield.com/code format version 5\n", "binary file of KenLM; give the ARPA file"),
        (
            GOOD.replace("a", "\xe4").replace("d\xe4t\xe4", "data").replace("gr\xe4m", "gram").encode("latin-1"),
            "not in UTF-8",
        ),
    ],
)
def test_files_that_are_no_arpa_files(data, message, tmp_path):
    if data is not None:
        (tmp_path / "a.arpa").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_arpa(tmp_path / "a.arpa")


def written(scorer, tables, texts):
    """The scores of texts of equal length, one in each row: of their tokens together, and of all."""

    def add(carry, tokens):
        state, total = carry
        total += scorer.score(tables, state, tokens[:, None])[:, 0]
        return (scorer.advance(tables, state, tokens, jnp.ones(tokens.shape, bool)), total), None

    start = scorer.start(tables, texts.shape[:1], (jnp.arange(len(texts)), 0)), jnp.zeros(len(texts))
    (state, total), _ = jax.lax.scan(add, start, texts.T)
    return total, total + scorer.end(tables, state)


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["the cat sat on the mat", "a cat and a dog sat", "the thé dog"] * 3
    return Tokenizer.train(texts, 330, byte_fallback=True)


def test_a_word_has_its_score_however_it_is_spelled(tokenizer, tmp_path):
    words = ["<s>", "</s>", "<unk>", "the", "cat", "sat", "thé", "mat", "dog"]
    model = random_model(np.random.default_rng(0), 3, words)
    write_arpa(tmp_path / "words.arpa", model)
    probability = plain(read_arpa(tmp_path / "words.arpa"))
    scorer = NGram(file=str(tmp_path / "words.arpa"), level="word", weight=0.7, bonus=0.3, unknown=-4.0)
    tables = scorer.tables(tokenizer)

    def expected(text):
        history, total = [0], 0.0
        for word in text.split():
            number = words.index(word) if word in words else 2
            total += 0.7 * (probability(number, history) - 4.0 * (number == 2)) + 0.3
            history.append(number)
        return total + 0.7 * probability(1, history)

    letters = {piece: token for token, piece in enumerate(tokenizer.spellings()) if len(piece) == 1}
    bytes_ = {int(p[3:5], 16): t for t, p in tokenizer.pieces_by_id().items() if p.startswith("<0x")}
    texts, spelled = ["the cat sat", "the thé dog xyz", "", "mat", "the thex cat"], []
    for text in texts:
        spelled.append((text, tokenizer.pieces(text)))
        spelled.append((text, [letters.get(bytes([byte]), bytes_[byte]) for byte in f" {text}".encode() if text]))
    assert [b"".join(tokenizer.spellings()[i] for i in ids).decode().strip() for _, ids in spelled] == [
        text for text, _ in spelled
    ]
    silent = tokenizer.spellings().index(b"")  # adds nothing to a text
    longest = max(len(ids) for _, ids in spelled)
    ids = np.array([ids + [silent] * (longest - len(ids)) for _, ids in spelled], np.int32)
    _, total = jax.jit(lambda *given: written(scorer, *given))(tables, ids)
    np.testing.assert_allclose(total, [expected(text) for text, _ in spelled], atol=1e-4)


def test_a_partial_word_has_the_score_of_the_best_word_that_begins_so(tokenizer, tmp_path):
    words = ["<s>", "</s>", "<unk>", "cat", "cats", "dog"]
    levels = [Level(np.arange(6)[:, None], np.array([-99, -1, -2, -0.5, -0.3, -0.9]), np.zeros(6))]
    write_arpa(tmp_path / "words.arpa", Arpa(words, levels))
    scorer = NGram(file=str(tmp_path / "words.arpa"), level="word", weight=1.0, bonus=0.5, unknown=-4.0)
    letters = {piece: token for token, piece in enumerate(tokenizer.spellings())}
    texts = np.array([[letters[b" "], letters[b"c"]], [letters[b" "], letters[b"x"]]], np.int32)
    begun, _ = jax.jit(lambda *given: written(scorer, *given))(scorer.tables(tokenizer), texts)
    np.testing.assert_allclose(begun, [-0.3 * LN10 + 0.5, -2 * LN10 - 4.0 + 0.5], atol=1e-4)


def test_models_that_do_not_suit_the_tokenizer(tokenizer, tmp_path):
    (tmp_path / "a.arpa").write_text(GOOD.replace("a", "Ä").replace("dÄtÄ", "data").replace("grÄm", "gram"))
    with pytest.raises(UserError, match="no model of this tokenizer.s pieces: .*; set level='word'"):
        NGram(file=str(tmp_path / "a.arpa")).tables(tokenizer)
    with pytest.raises(UserError, match="has no word that the tokenizer can write, such as 'Ä'"):
        NGram(file=str(tmp_path / "a.arpa"), level="word").tables(Tokenizer.train(["the cat"] * 9, 55))


BOOST = Phrases()


def of_phrases(text, phrases, boost):
    """At each place, the longest phrase that begins there."""
    here = [[len(phrase) for phrase in phrases if text[i : i + len(phrase)] == phrase] for i in range(len(text))]
    return boost * sum(max(lengths, default=0) for lengths in here)


def test_phrases_add_their_boost_where_they_are_complete():
    generator = np.random.default_rng(0)
    lists = [[generator.integers(0, 3, generator.integers(1, 5)).tolist() for _ in range(6)] for _ in range(60)]
    texts = generator.integers(0, 3, (60, 12)).astype(np.int32)
    chosen = np.arange(60)[:, None]
    tables = boosts(Tree(lists), 1.5, chosen)
    _, total = jax.jit(lambda *given: written(BOOST, *given))(tables, texts)
    np.testing.assert_allclose(total, [of_phrases(*x, 1.5) for x in zip(texts.tolist(), lists, strict=True)], atol=1e-4)
    # The same, where some phrases are those of all texts.
    for _ in range(3):
        common = [generator.integers(0, 3, generator.integers(1, 7)).tolist() for _ in range(6)]
        tree = Tree([common])
        tables = Several((boosts(tree, 1.5), boosts(Tree(lists, tree), 1.5, chosen, tree)))
        _, total = jax.jit(lambda *given: written(BOOST, *given))(tables, texts)
        expected = [of_phrases(text, own + common, 1.5) for text, own in zip(texts.tolist(), lists, strict=True)]
        np.testing.assert_allclose(total, expected, atol=1e-4)


def test_the_phrases_of_all_examples_are_no_part_of_the_lists_of_each():
    words = tuple("".join(one) for one in itertools.product("ab", repeat=11))
    phrases = Phrases(words=words)
    common = phrases.tables(Letters)
    found = phrases.for_examples(
        common, [[(f"{'ab' * 5}{number:b}".translate({48: "a", 49: "b"}),) for number in range(16)]], Letters
    )
    assert found.parts[0] is common and [len(one.root) for one in found.parts] == [4096, 256]


def test_a_phrase_is_boosted_token_by_token():
    begun, total = jax.jit(lambda *given: written(BOOST, *given))(
        boosts(Tree([[[1, 2, 1]]]), 2.0), np.array([[1, 2], [2, 1]], np.int32)
    )
    assert begun.tolist() == [4.0, 2.0] and total.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "made, message",
    [
        (Phrases(words=("漢字",)), "cannot write '漢字'"),
        (Phrases(file="{tmp}/absent.txt"), "cannot read the list"),
        (Phrases(file="{tmp}/empty.txt"), "is empty; a list has one text in each line"),
        (Choices(), "no text; set texts or file"),
    ],
)
def test_lists_that_cannot_be_used(made, message, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    if made.file:
        made = type(made)(file=made.file.format(tmp=tmp_path))
    with pytest.raises(UserError, match=message):
        made.tables(Tokenizer.train(["the cat"] * 9, 55))


# The search. -------------------------------------------------------------------------------------------------------------

FRAMES, CLASSES = 5, 3
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 4, 4, 4], [0, 2, 2, 2, 0]])
EXAMPLES = [(0, slice(0, 5)), (1, slice(0, 2)), (1, slice(2, 5)), (2, slice(1, 4))]


def stream(logits, segments):
    segments = np.asarray(segments)
    positions = np.array([[np.sum(row[:t] == row[t]) for t in range(len(row))] for row in segments])
    return Stream(jnp.asarray(logits, jnp.float32), jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32))


def by_alignment(logits, weight=0.0):
    """Text -> the logarithm of the sum over all its alignments; `weight`: of blank-aware scores."""
    logs, found = np.asarray(jax.nn.log_softmax(jnp.asarray(logits))), {}
    logs = logs + weight * np.where(np.arange(logs.shape[1]) == 0, logs, np.log1p(-np.exp(logs[:, :1])))
    for path in itertools.product(range(logs.shape[1]), repeat=len(logs)):
        text = tuple(label for label, _ in itertools.groupby(path) if label)
        found[text] = np.logaddexp(found.get(text, -np.inf), sum(logs[range(len(path)), path]))
    return found


def results(found, row, where):
    """[(text, score)] of one example."""
    ids, scores = (np.asarray(x[row, where]) for x in found.features[:2])
    every = [(tuple(int(i) for i in text if i), float(score)) for text, score in zip(ids.T, scores.sum(0), strict=True)]
    return [(text, score) for text, score in every if np.isfinite(score)]


def check(found, expected, atol=1e-4):
    """All texts, the best first."""
    expected = sorted(((text, score) for text, score in expected.items() if np.isfinite(score)), key=lambda x: -x[1])
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=atol)


def compiled(decoder):
    return jax.jit(lambda *arguments: decoder(*arguments))


def test_a_wide_beam_finds_all_texts_with_the_sums_of_their_alignments():
    wide = compiled(PrefixBeam(beams=48, shortlist=None))
    for seed in range(4):
        logits = 2 * np.random.default_rng(seed).normal(size=(3, FRAMES, CLASSES))
        found = wide(stream(logits, SEGMENTS))
        for row, where in EXAMPLES:
            check(results(found, row, where), by_alignment(logits[row, where]))


@pytest.fixture(scope="module")
def bigrams():
    """A bigram model of the ids 0, 1, 2 as "x", "a", "b"."""
    model = random_model(np.random.default_rng(3), 2, ["<s>", "</s>", "<unk>", "a", "b"])
    return model, Tokens(trie(model), np.array([2, 3, 4], np.int32), *np.array([0.8, 0.2, -1.0], np.float32))


def test_a_wide_beam_with_an_n_gram_model_and_phrases(bigrams):
    model, tables = bigrams
    probability, lists = plain(model), [[[1, 2], [2, 2, 1]], [[1, 1]]]
    beam = PrefixBeam(beams=48, shortlist=None, scorers={"model": NGram(file=""), "phrases": Phrases()})
    chosen = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])  # segment 4 of the second row has the second list
    tables = {"model": tables, "phrases": boosts(Tree(lists), 1.5, chosen)}, None
    logits = 2 * np.random.default_rng(0).normal(size=(3, FRAMES, CLASSES))
    found = compiled(beam)(stream(logits, SEGMENTS), 0, tables)
    for row, where in EXAMPLES:
        expected = by_alignment(logits[row, where])
        for text in expected:
            words = [0, *(token + 2 for token in text), 1]
            model_score = sum(0.8 * probability(words[n], words[:n]) for n in range(1, len(words))) + 0.2 * len(text)
            expected[text] += model_score + of_phrases(list(text), lists[int((row, where.start) == (1, 2))], 1.5)
        check(results(found, row, where), expected)


def test_a_beam_with_choices_finds_the_best_of_them():
    texts = [[1], [1, 2, 1], [2, 2], [2, 1]]
    beam = PrefixBeam(beams=12, shortlist=None, scorers={"list": Choices()})
    logits = 2 * np.random.default_rng(1).normal(size=(3, FRAMES, CLASSES))
    found = compiled(beam)(stream(logits, SEGMENTS), 0, ({"list": allowed(texts)}, None))
    for row, where in EXAMPLES:
        every = by_alignment(logits[row, where])
        check(results(found, row, where), {tuple(text): every[tuple(text)] for text in texts if tuple(text) in every})


def test_blank_aware_scores():
    weight, logits = 0.6, np.random.default_rng(2).normal(size=(3, FRAMES, CLASSES))
    found = compiled(PrefixBeam(beams=48, shortlist=None, blank_weight=weight))(stream(logits, SEGMENTS))
    check(results(found, 0, slice(0, 5)), by_alignment(logits[0], weight))


def test_one_beam_is_the_best_path_where_every_frame_has_a_class_above_three_quarters():
    """The sums of a beam may prefer a text that is not that of the best alignment. Above 3/4 of each frame they cannot."""
    beams = [compiled(decoder) for decoder in (BestPath(), PrefixBeam(beams=1), PrefixBeam(beams=1, shortlist=1))]
    generator = np.random.default_rng(0)
    for _ in range(10):
        shape, classes = (4, 24), 4
        best = generator.choice([0.755, 0.8, 0.95, 0.999], shape)
        rest = generator.dirichlet(np.full(classes - 1, 0.2), shape) * (1 - best[..., None])
        probabilities = np.concatenate([best[..., None], rest], axis=-1)
        for cell in np.ndindex(shape):
            probabilities[cell] = np.roll(probabilities[cell], generator.integers(classes))
        segments = np.repeat([[1] * 10 + [2] * 9 + [0] * 5], 4, axis=0)
        path, *others = (decoder(stream(np.log(probabilities), segments)).features for decoder in beams)
        for other in others:
            np.testing.assert_array_equal(other.ids, path.ids)
            written = np.asarray(path.ids) > 0
            np.testing.assert_array_equal(np.asarray(other.frames)[written], np.asarray(path.frames)[written])


class Letters:
    """A tokenizer of the texts of "a" and "b", whose ids are 1 and 2."""

    unknown = None

    @staticmethod
    def pieces(text):
        return ["xab".index(letter) for letter in text]


def test_a_batch_of_one_a_batch_of_sixteen_and_packed_rows_give_the_same(bigrams):
    phrases = Phrases(words=("ab",), boost=0.7)
    beam = PrefixBeam(beams=4, shortlist=2, scorers={"model": NGram(file=""), "phrases": phrases})
    common = {"model": bigrams[1], "phrases": phrases.tables(Letters)}, None
    search = jax.jit(lambda logits, tables: beam(logits, 0, tables))
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 13, 16)
    own = [[(), ("ba", "bb"), ("aab",)][number % 3] for number in range(16)]  # phrases of each example
    logits = [generator.normal(size=(length, CLASSES)) for length in lengths]

    def rows(groups, room=24):
        features, segments = np.full((len(groups), room, CLASSES), np.nan), np.zeros((len(groups), room), int)
        for row, group in enumerate(groups):
            at = 0
            for number, one in enumerate(group, 1):
                features[row, at : at + lengths[one]], segments[row, at : at + lengths[one]] = logits[one], number
                at += lengths[one] + (row + number) % 2
        lists = [[*(own[one] for one in group), *[()] * (2 - len(group))] for group in groups]
        tables = beam.for_examples(common, lists, Letters)
        found = search(stream(np.where(segments[..., None] > 0, features, 7.0), segments), tables).features
        for row, group in enumerate(groups):
            for number, one in enumerate(group, 1):
                yield one, [np.asarray(x)[row, segments[row] == number] for x in found]

    sixteen = dict(rows([[one] for one in range(16)]))
    alone = dict(next(rows([[one]])) for one in range(4))
    packed = dict(rows([[0, 1], [2, 3], [4], [5, 6], [7], [8], [9, 10], [11], [12], [13], [14], [15], [], [], [], []]))
    for other in (alone, packed):
        for one, parts in other.items():
            for ours, theirs in zip(parts, sixteen[one], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert search._cache_size() == 2, "one program for each number of rows, whatever the phrases"


def test_tokens_lie_at_their_frames_with_their_probability():
    probabilities = np.full((1, 8, 3), 0.01)
    for frame, (label, p) in enumerate(
        [(0, 0.9), (1, 0.6), (1, 0.8), (0, 0.7), (1, 0.9), (2, 0.5), (2, 0.7), (0, 0.9)]
    ):
        probabilities[0, frame] = (1 - p) / 2
        probabilities[0, frame, label] = p
    found = compiled(PrefixBeam(beams=6))(stream(np.log(probabilities), np.ones((1, 8), int))).features
    assert found.ids[0, :, 0].tolist() == [0, 1, 0, 0, 1, 2, 0, 0]
    assert found.frames[0, :, 0].tolist() == [-1, 1, -1, -1, 4, 5, -1, -1]
    np.testing.assert_allclose(found.confidence[0, :, 0], [0, 0.8, 0, 0, 0.9, 0.7, 0, 0], atol=1e-6)


@pytest.mark.reference
def test_the_best_text_is_that_of_fast_ctc_decode():
    library = pytest.importorskip("fast_ctc_decode")
    beam = compiled(PrefixBeam(beams=16, shortlist=None))
    logits = 3 * np.random.default_rng(0).normal(size=(20, 30, 5)).astype(np.float32)
    found = beam(stream(logits, np.ones((20, 30), int)))
    for row, one in enumerate(np.asarray(jax.nn.softmax(jnp.asarray(logits)))):
        text, _ = library.beam_search(one, "-abcd", beam_size=16, beam_cut_threshold=0.0)
        assert "".join("-abcd"[i] for i in results(found, row, slice(None))[0][0]) == text


# The second pass. ----------------------------------------------------------------------------------------------------------


def test_next_tokens_stand_without_gaps_at_the_beginning_of_their_example():
    ids, segments = np.array([[-1, 5, 6, -1, 7, 8, 9, -1, -1]]), np.array([[1, 1, 1, 1, 2, 2, 2, 3, 0]])
    inputs, following, place = next_tokens(ids, segments, 3)
    assert inputs.segments.tolist() == [[1, 1, 0, 0, 2, 2, 2, 0, 0]]
    assert inputs.features.tolist() == [[3, 5, 0, 0, 3, 7, 8, 0, 0]]
    assert inputs.positions.tolist() == [[0, 1, 0, 0, 0, 1, 2, 0, 0]]
    assert following.tolist() == [[5, 6, 0, 0, 7, 8, 9, 0, 0]]
    assert place.tolist() == [[9, 0, 1, 9, 4, 5, 6, 9, 9]]
    inputs, following, place = next_tokens(ids, segments, None)
    assert inputs.features.tolist() == [[5, 0, 0, 0, 7, 8, 0, 0, 0]]
    assert following.tolist() == [[6, 0, 0, 0, 8, 9, 0, 0, 0]]
    assert place.tolist() == [[9, 9, 0, 9, 9, 4, 5, 9, 9]]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, tokenizer):
    """A run with a language model that was not trained, its decoder and its parameters."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    return folder, *untrained_language_model(folder, tokenizer)


def test_a_language_model_orders_the_texts_anew(language_model, tokenizer):
    folder, decoder, params = language_model
    rescorer = c.LanguageModelRescorer(run=str(folder), weight=0.7, bonus=0.4)
    generator = np.random.default_rng(0)
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    ids = np.where(generator.random((1, 8, 3)) < 0.4, EMPTY, generator.integers(1, len(tokenizer), (1, 8, 3)))
    scores = generator.normal(size=(1, 8, 3)).astype(np.float32)
    scores[0, 5, 2] = -np.inf  # a text that does not exist
    before = Stream(
        Written(*map(jnp.asarray, (ids, scores, scores, ids))), jnp.asarray(segments), jnp.asarray(segments)
    )
    found = jax.jit(lambda written, tables: rescored(written, rescorer, tables))(before, rescorer.tables(tokenizer))

    predict = jax.jit(lambda text: jax.nn.log_softmax(decoder.apply({"params": params}, text).features))

    def expected(text):
        padded = np.array([[*text, *[0] * (8 - len(text))]])
        logs = np.asarray(predict(Stream(padded, (np.arange(8) < len(text))[None].astype(int), np.arange(8)[None])))[0]
        return sum(0.7 * logs[n - 1, text[n]] + 0.4 for n in range(1, len(text)))

    for (_, ours), (_, given) in zip(by_example(found), by_example(before), strict=True):
        texts = [[i for i in text if i != EMPTY] for text in np.asarray(given.ids).T.tolist()]
        totals = given.scores.sum(0) + np.array([expected(text) for text in texts])
        order = np.argsort(-totals)
        np.testing.assert_allclose(ours.scores.sum(0), totals[order], atol=1e-4)
        np.testing.assert_array_equal(ours.ids, np.asarray(given.ids)[:, order])
    with pytest.raises(UserError, match="has another tokenizer than the recogniser"):
        rescorer.tables(Tokenizer.train(["the cat"] * 9, 55))


@pytest.mark.parametrize("begin", [None, 1])
def test_a_language_model_scores_token_by_token_as_the_whole_text(language_model, tokenizer, begin, monkeypatch):
    """Its keys and values are those of the last tokens, as with a sliding window."""
    folder, decoder, params = language_model
    opened = language_scores._opened
    monkeypatch.setattr(language_scores, "_opened", lambda run: (opened(run)[0], begin, opened(run)[2]))
    scorer = c.LanguageModelScorer(run=str(folder), weight=0.7, bonus=0.4, context=4)
    texts = np.random.default_rng(0).integers(1, len(tokenizer), (3, 8)).astype(np.int32)
    _, total = jax.jit(lambda *given: written(scorer, *given))(scorer.tables(tokenizer), texts)
    ids = texts if begin is None else np.pad(texts, ((0, 0), (1, 0)), constant_values=begin)
    whole, window = stream(ids, np.ones_like(ids)), c.SlidingWindow(window=4)
    whole = whole._replace(features=ids)
    windowed = decoder.clone(sliding_window=window)
    logs = jax.jit(lambda text: jax.nn.log_softmax(windowed.apply({"params": params}, text).features))(whole)
    after = np.take_along_axis(np.asarray(logs)[:, :-1], ids[:, 1:, None], axis=-1)
    np.testing.assert_allclose(total, 0.7 * after.sum((1, 2)) + 0.4 * 8, atol=1e-4)


@pytest.mark.slow
def test_a_text_longer_than_the_learned_positions_still_depends_on_its_last_tokens(monkeypatch):
    decoder = c.TextDecoder(
        vocabulary=9, layers=1, width=16, heads=2, mlp=16, cross_attention=False, positions=c.Learned(length=3)
    )
    text = Stream(np.zeros((1, 3), np.int32), np.ones((1, 3), np.int32), np.arange(3, dtype=np.int32)[None])
    params = jax.tree.map(lambda x: 3 * x, unboxed(jax.jit(decoder.init)(jax.random.key(0), text)["params"]))
    opened = c.CausalLM(decoder=decoder), 1, params
    monkeypatch.setattr(language_scores, "_opened", lambda run: opened)
    scorer = c.LanguageModelScorer(run="learned", context=4)
    tables = {"params": params, "weight": 1.0, "bonus": 0.0, "start": scorer._begun(params)}
    texts = np.array([[3, 4, 5, 6, 7, 1, 1], [3, 4, 5, 6, 2, 1, 1], [3, 4, 5, 6, 7, 1, 1]], np.int32)
    _, total = jax.jit(lambda *given: written(scorer, *given))(tables, texts)
    assert np.isfinite(total).all() and total[0] == pytest.approx(total[2]) != pytest.approx(total[1])


def next_likelihood(decoder, params, text, length=FRAMES):
    """[N, V] the logarithm of the probability of each token after each token of a text."""
    padded = np.array([[*text, *[0] * (length - len(text))]], np.int32)
    there = (np.arange(length) < len(text))[None].astype(np.int32)
    logits = decoder.apply({"params": params}, Stream(padded, there, np.arange(length, dtype=np.int32)[None])).features
    return np.asarray(jax.nn.log_softmax(logits))[0]


@pytest.mark.slow
def test_a_wide_beam_with_a_language_model(language_model, tokenizer):
    """Of two pieces, since no other one has a probability; the scores are sums over all alignments."""
    folder, decoder, params = language_model
    beam = PrefixBeam(
        beams=48, shortlist=2, blank_weight=0.6, scorers={"model": c.LanguageModelScorer(run=str(folder))}
    )
    tables, generator = beam.scorers["model"].tables(tokenizer), np.random.default_rng(0)
    tables |= {"weight": np.float32(0.7), "bonus": np.float32(0.4)}
    pieces, few = [40, 7], 2 * generator.normal(size=(3, FRAMES, CLASSES))
    logits = np.full((3, FRAMES, len(tokenizer)), -50.0)
    logits[..., [0, *pieces]] = few
    search, alone = compiled(beam), dataclasses.replace(beam, scorers={})
    found = search(stream(logits, SEGMENTS), 0, ({"model": tables}, None))
    known = {}
    for row, where in EXAMPLES:
        expected = {}
        for text, score in by_alignment(few[row, where], 0.6).items():
            text = tuple(pieces[label - 1] for label in text)
            if text not in known:
                logs = next_likelihood(decoder, params, text)
                known[text] = sum(0.7 * logs[n - 1, text[n]] for n in range(1, len(text))) + 0.4 * len(text)
            expected[text] = score + known[text]
        check(results(found, row, where), expected)

    tables |= {"weight": np.float32(0), "bonus": np.float32(0)}
    found, plain = (
        search(stream(logits, SEGMENTS), 0, ({"model": tables}, None)),
        compiled(alone)(stream(logits, SEGMENTS)),
    )
    for ours, theirs in zip(found.features, plain.features, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_a_transformer_that_knows_bigrams_finds_what_the_n_gram_model_finds(monkeypatch):
    """Alone, and in a batch of sixteen. The ids are "x", "a", "b" and the beginning of a text."""
    generator = np.random.default_rng(4)
    chances = generator.dirichlet([1.0, 1.0, 1.0], 4)  # of "x", "a", "b" after each
    order = [1, 2, 3, 0]  # of the ids in the model's words
    grams = np.array([[order[before], order[after]] for before in range(4) for after in range(3)])
    levels = [
        Level(np.arange(4)[:, None], np.full(4, -2.0), np.zeros(4)),
        Level(grams, np.log10(chances).reshape(-1), np.zeros(12)),
    ]
    words = trie(Arpa(["<s>", "<unk>", "a", "b"], levels))
    n_gram = Tokens(words, np.array(order[:3], np.int32), *np.array([0.8, 0.2, 0.0], np.float32))
    style = c.BlockStyle(norm="rms", bias=False, epsilon=1e-12)
    decoder = c.TextDecoder(
        vocabulary=4, layers=2, width=4, heads=1, mlp=4, tied=False, cross_attention=False, block=style
    )
    text = Stream(np.zeros((1, 2), np.int32), np.ones((1, 2), np.int32), np.arange(2, dtype=np.int32)[None])
    params = jax.tree.map(np.zeros_like, unboxed(jax.jit(decoder.init)(jax.random.key(0), text)["params"]))
    params["embedding"]["embedding"], params["norm"]["scale"] = (
        np.eye(4),
        np.ones(4),
    )  # a token becomes two times its unit vector
    params["logits"]["kernel"] = np.log(np.pad(chances, ((0, 0), (0, 1)), constant_values=1e-30)) / 2
    opened = c.CausalLM(decoder=decoder), 3, params
    monkeypatch.setattr(language_scores, "_opened", lambda run: opened)
    scorer = c.LanguageModelScorer(run="bigrams", context=2)
    start = jax.jit(scorer._begun)(params)
    transformer = {"params": params, "weight": np.float32(0.8), "bonus": np.float32(0.2), "start": start}
    searches = [
        (compiled(PrefixBeam(beams=6, shortlist=None, scorers={"model": one})), ({"model": known}, None))
        for one, known in ((NGram(file=""), n_gram), (scorer, transformer))
    ]
    logits = generator.normal(size=(16, 12, CLASSES))
    segments = np.sort(generator.integers(1, 3, (16, 12)))
    expected, found, *alone = (
        search(stream(logits[rows], segments[rows]), 0, tables)
        for (search, tables), rows in zip(
            searches + searches[1:] * 3, [slice(16), slice(16), [0], [5], [9]], strict=True
        )
    )
    assert len({tuple(text) for text in np.asarray(found.features.ids)[..., 0].tolist()}) > 8
    for theirs, ours in zip(expected.features, found.features, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for row, one in zip([0, 5, 9], alone, strict=True):
        for whole, ours in zip(found.features, one.features, strict=True):
            np.testing.assert_allclose(ours[0], whole[row], atol=1e-5)


# Training of n-gram models. ------------------------------------------------------------------------------------------------


def kneser_ney(sentences, order):
    """(word, context) -> p, straight from Chen and Goodman (1998) over dictionaries."""
    padded = [("<s>", *sentence, "</s>") for sentence in sentences]
    occurring = [[text[i : i + n] for text in padded for i in range(len(text) - n + 1)] for n in range(1, order + 1)]
    words = {word for text in padded for word in text} - {"<s>"} | {"<unk>"}

    def counts(n):
        found = {}
        for gram in set(occurring[n - 1]):
            if n == order or gram[0] == "<s>":
                found[gram] = occurring[n - 1].count(gram)
            else:
                found[gram] = len({longer[0] for longer in occurring[n] if longer[1:] == gram})
        return {gram: count for gram, count in found.items() if gram != ("<s>",)}

    of_order = [counts(n) for n in range(1, order + 1)]

    def discount(n, count):
        have = [sum(c == k for c in of_order[n - 1].values()) for k in range(5)]
        if not all(have[1:4]):
            return (0, 0.5, 1, 1.5)[min(count, 3)]
        share = have[1] / (have[1] + 2 * have[2])
        found = [0, *(k - (k + 1) * share * have[k + 1] / have[k] for k in (1, 2, 3))]
        return (found if min(found) >= 0 else (0, 0.5, 1, 1.5))[min(count, 3)]

    def of(word, context):
        after = {gram[-1]: count for gram, count in of_order[len(context)].items() if gram[:-1] == context}
        lower = of(word, context[1:]) if context else 1 / len(words)
        if not after:
            return lower
        taken, count = sum(discount(len(context) + 1, c) for c in after.values()), after.get(word, 0)
        return (count - discount(len(context) + 1, count) + taken * lower) / sum(after.values())

    return of, words


@pytest.mark.parametrize("order", [1, 2, 3])
def test_modified_kneser_ney(order):
    generator = np.random.default_rng(0)
    sentences = [
        ["abcdef"[min(i, 5)] for i in generator.geometric(0.4, generator.integers(1, 9)) - 1] for _ in range(30)
    ]
    model = train(sentences, order)
    expected, words = kneser_ney(sentences, order)
    ours, number = plain(model), {word: n for n, word in enumerate(model.words)}
    assert words | {"<s>"} == set(model.words)
    for context in itertools.product(["<s>", "a", "b", "f"], repeat=order - 1):
        found = {word: math.exp(ours(number[word], [number[word] for word in context])) for word in words}
        assert sum(found.values()) == pytest.approx(1)
        assert found == pytest.approx({word: expected(word, context) for word in words})


def test_the_perplexity_of_texts_is_that_of_their_tokens_after_the_first():
    sentences = ["a b c", "a b d", "b c a b", "c a"]
    model, (expected, _) = (
        train([one.split() for one in sentences], 3),
        kneser_ney([one.split() for one in sentences], 3),
    )
    texts = ["a b c d", "x b b", "c"]
    logs = [math.log(expected(*one)) for one in (("b", ("<s>", "a")), ("c", ("a", "b")), ("d", ("b", "c")))]
    logs += [math.log(expected(*one)) for one in (("b", ("<s>", "<unk>")), ("b", ("<unk>", "b")))]
    found = perplexities(model, [(text.split(), 2) for text in texts])  # of two words each, say
    assert found.token == pytest.approx(math.exp(-sum(logs) / 5)) and found.word == pytest.approx(
        math.exp(-sum(logs) / 4)
    )
    assert (found.tokens, found.unknown) == (5, 0)
    assert perplexities(model, [(["a", "y"], 2)]).unknown == 1
    with pytest.raises(UserError, match="no text has two tokens"):
        perplexities(model, [(["a"], 1)])


def test_a_model_of_pieces_is_trained_and_measured_on_what_a_run_reads(tmp_path, tokenizer, capsys):
    rows = {"train": ["is there a cat?", "is there a circle?"], "test": ["what color is the cat?"]}
    for split, texts in rows.items():
        lines = [json.dumps({"text": text, "target": "left out"}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        (tmp_path / f"{split}.txt").write_text("\n".join(texts))
    splits = {split: str(tmp_path / f"{split}.jsonl") for split in rows}
    config = tiny()
    tasks = {"words": c.LanguageModel(outputs=len(tokenizer))}
    model = dataclasses.replace(config.model, fusion=None, tasks=tasks)
    data = dataclasses.replace(config.data, source=c.Manifest(splits=splits), directory=str(tmp_path / "data"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(c.to_json(dataclasses.replace(config, model=model, data=data)))
    tokenizer.save(tmp_path / "run" / tokenizer.file_name)
    run, said = str(tmp_path / "run"), []
    for train_on, test in ((f"{run}:train", f"{run}:test"), (tmp_path / "train.txt", tmp_path / "test.txt")):
        out = str(tmp_path / f"{len(said)}.arpa")
        assert cli.main(["ngram", str(train_on), "-o", out, "--tokenizer", run, "--test", str(test)]) == 0
        said.append(capsys.readouterr().out.partition(": perplexity ")[2])
    assert said[0] == said[1] and f" per word; {len(tokenizer.pieces(rows['test'][0])) - 1} tokens, " in said[0]


# The page and its commands. ------------------------------------------------------------------------------------------------


COMMANDS = re.findall(r"^mmjax .*", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)), re.MULTILINE)


@pytest.fixture
def sentences(tmp_path, monkeypatch):
    """The files of the page, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sentences.txt").write_text("is there a circle?\nwhat color is the cat?\nis there a cat on the mat?\n")
    (tmp_path / "names.txt").write_text("a cat\nthe mat\n")


def test_the_examples_of_the_page_are_decoders(sentences, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "runs" / "asr" / tokenizer.file_name)
    found = []
    for _, command, *words in map(shlex.split, COMMANDS):
        if command == "ngram":
            assert cli.main([command, *words]) == 0
        else:
            found.append(c.override(tiny(), words[1:]).model.tasks["transcript"].decoding)
    alone, model, phrases = found
    assert alone == PrefixBeam(beams=4)
    assert model.tables(tokenizer)[0]["words"].trie.order == 3
    assert phrases.tables(tokenizer)[0]["names"].gain.max() == 2 * max(
        map(len, map(tokenizer.pieces, ["a cat", "the mat"]))
    )
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(text, {})


@pytest.mark.slow
def test_the_commands_of_the_page(run, sentences, capsys):
    for line in COMMANDS:
        words = shlex.split(line.replace("runs/asr", str(run)))[1:]
        assert (
            cli.main([*words, "--subset", "speech", "--examples", "8", "--json"] if words[0] == "eval" else words) == 0
        ), line
        out = capsys.readouterr().out
        assert "words.arpa.gz: " in out if words[0] == "ngram" else "transcript/wer" in out


def test_a_model_of_pieces_in_a_file(tokenizer, tmp_path, capsys):
    texts = ["the cat sat on the mat"] * 3 + ["a dog sat"]
    with gzip.open(tmp_path / "sentences.txt.gz", "wt") as file:
        file.write("\n".join(texts))
    tokenizer.save(tmp_path / "run" / tokenizer.file_name)
    out, run = str(tmp_path / "pieces.arpa"), str(tmp_path / "run")
    words = ["ngram", str(tmp_path / "sentences.txt.gz"), "-o", out, "--order", "4", "--tokenizer", run]
    assert cli.main(words) == 0
    scorer = NGram(file=out, weight=1.0)
    tables, ids = scorer.tables(tokenizer), np.array([tokenizer.pieces(texts[0])], np.int32)
    _, score = jax.jit(lambda tables, ids: written(scorer, tables, ids))(tables, np.concatenate([ids, ids[:, ::-1]]))
    assert score[0] > -4 > -10 > score[1]
    assert cli.main(["ngram", str(tmp_path / "absent.txt"), "-o", out]) == 2
    assert "cannot read the text" in capsys.readouterr().err
