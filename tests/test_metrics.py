"""Metrics of a split against values by hand, and against scikit-learn and SciPy where they are installed."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from rich.console import Console

from mmjax import losses
from mmjax.data.labels import Alternatives
from mmjax.evaluate.tables import shown_metrics, table
from mmjax.metric import Metric
from mmjax.models.task import Item, known_of
from mmjax.stream import Stream
from mmjax.tasks import CTC, Classify, LanguageModel, metrics
from mmjax.tasks.metrics import auroc, average_ranks
from mmjax.tasks.text_metrics import OF_REPLIES, basic, cider, rouge, signatures, text_metrics
from mmjax.tasks.vqa import normalised, vqa_accuracy


def of_split(function):
    """The metrics of a split in which every example counts once."""
    return lambda truths, predictions: metrics.values(function(truths, predictions), len(truths))


classification, multi_label = of_split(metrics.classification), of_split(metrics.multi_label)
regression, error_rates = of_split(metrics.regression), of_split(text_metrics)
reply_metrics = of_split(partial(text_metrics, names=OF_REPLIES))


def test_classification_by_hand():
    truths = np.array([0, 0, 1, 1, 2, 2, 2])
    chosen = np.array([0, 1, 1, 1, 0, 2, 2])
    found = classification(truths, np.eye(4)[chosen])  # the fourth class does not occur, so no mean counts it
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["macro_f1"] == pytest.approx((2 / 4 + 4 / 5 + 4 / 5) / 3)
    assert found["uar"] == pytest.approx((1 / 2 + 2 / 2 + 2 / 3) / 3)
    # All scores are 0 or 1: of the pairs (right class, another class) those are won that have 1 and 0; equal ones count half.
    areas = [(1 * 4 + 1 * 4 / 2 + 1 / 2) / 10, (2 * 4 + 2 * 1 / 2) / 10, (2 * 4 + 1 * 4 / 2) / 12]
    assert found["auroc"] == pytest.approx(np.mean(areas))


def test_a_class_that_is_only_chosen_costs_accuracy_and_recall():
    found = classification(np.array([0, 0, 1, 1]), np.eye(3)[[0, 2, 1, 1]])
    assert found["accuracy"] == found["uar"] == 0.75
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


def test_a_split_of_one_class_has_no_auroc():
    found = classification(np.array([1, 1]), np.array([[0.0, 1.0], [2.0, 1.0]]))
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(2 / 3), "uar": 0.5}


def test_auroc_counts_ties_half():
    positive, negative = [3.0, 2.0, 2.0], [2.0, 1.0, 0.0, 2.0]
    truths = np.array([True] * 3 + [False] * 4)
    once = np.ones((1, 7))
    assert auroc(truths, np.array(positive + negative))(once) == pytest.approx((4 + 3 + 3) / 12)
    assert auroc(truths, np.zeros(7))(once) == 0.5


def test_auroc_tells_confident_scores_apart():
    """Float32 logits whose probabilities all round to 1: the right one is still the largest."""
    scores = np.array([[30.0, 0.0], [25.0, 0.0], [20.0, 0.0]], np.float32)
    assert classification(np.array([0, 1, 1]), scores)["auroc"] == 1.0


def test_ranks_of_equal_values_are_their_mean():
    ranks = average_ranks(np.array([5.0, 1.0, 5.0, 7.0, 5.0]), np.ones((1, 5)))
    np.testing.assert_array_equal(ranks[0], [3, 1, 3, 5, 3])


def test_multi_label_by_hand():
    truths = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]])
    scores = np.array([[1.0, -1.0, -2.0, -1.0], [2.0, 2.0, -1.0, -1.0], [3.0, 1.0, -3.0, -1.0]])
    found = multi_label(truths, scores)
    assert found["accuracy"] == pytest.approx(10 / 12)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)  # the fourth class occurs nowhere
    assert found["auroc"] == pytest.approx((1 + 1 / 2) / 2)  # the first class is in every example
    assert multi_label(np.zeros((2, 3)), np.full((2, 3), -1.0)) == {"accuracy": 1.0}


def test_regression_by_hand():
    truths, predictions = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[2.0], [2.0], [5.0], [3.0]])
    one = {"mae": 1.0, "rmse": (6 / 4) ** 0.5, "pearson": 3 / 30**0.5, "spearman": 3.5 / 22.5**0.5}
    assert regression(truths, predictions) == pytest.approx(one)
    # A second number, which is exactly wrong: each metric is the mean over both.
    both = regression(np.hstack([truths, truths]), np.hstack([predictions, -truths]))
    other = {"mae": 5.0, "rmse": (4 * 30 / 4) ** 0.5, "pearson": -1.0, "spearman": -1.0}
    assert both == pytest.approx({name: (one[name] + other[name]) / 2 for name in one})


@pytest.mark.parametrize("count", [1, 2, 7, 49])
def test_a_constant_has_no_correlation(count):
    """Whatever the rounding of its mean: the standard deviation of seven times 0.1 is not 0."""
    for kind in (np.float32, np.float64):
        constant, rising = np.full((count, 1), 0.1, kind), np.arange(count, dtype=kind)[:, None]
        for pair in ((rising, constant), (constant, rising), (constant, constant)):
            assert set(regression(*pair)) == {"mae", "rmse"}


def test_error_rates_are_those_of_the_corpus():
    found = error_rates(["ab cd", ""], ["ab ce", "f"])
    assert found == {
        "cer": pytest.approx(2 / 5),
        "wer": pytest.approx(2 / 2),
    }  # what is written for nothing is an insertion
    assert error_rates(["", ""], ["a", ""]) == {}


def test_error_rates_of_normalised_texts_ignore_case_punctuation_and_brackets():
    names = ("cer", "wer", "cer_basic", "wer_basic")
    found = of_split(partial(text_metrics, names=names))(
        ["Press 1, please.", "Hello"], ["press 1 please", "hullo (beep)"]
    )
    assert found["wer"] == 5 / 4 and found["wer_basic"] == 1 / 4
    assert found["cer_basic"] == 1 / len("press 1 pleasehello") < found["cer"]


SPOKEN = [
    "Press 1, please.",
    "c\u2019\u00e8 l'UFFICIO <beep> (ok)",
    " \uff21\uff22 \u0418\u0306 & \u20ac5_x [!] ",
    "\u0130stanbul-2",
    "",
]


@pytest.mark.reference
def test_the_basic_form_is_that_of_whisper():
    whisper = pytest.importorskip("transformers.models.whisper.english_normalizer").BasicTextNormalizer()
    assert [basic(text) for text in SPOKEN] == [whisper(text).strip() for text in SPOKEN]


def test_a_signature_says_how_a_metric_is_computed():
    sacrebleu = pytest.importorskip("sacrebleu")
    names = ("cer", "wer_basic", "bleu", "chrf")
    found, varying = signatures(names, ["a b", "d"]), signatures(names, [Alternatives(["a b", "b"]), "d"])
    assert list(found) == ["wer_basic", "bleu", "chrf"] and "lower case" in found["wer_basic"]
    for name, metric in (("bleu", sacrebleu.BLEU()), ("chrf", sacrebleu.CHRF())):
        metric.corpus_score(["a b", "c"], [["a b", "d"]])
        assert found[name] == str(metric.get_signature())
        metric.corpus_score(["a b", "c"], [["a b", "d"], ["b", None]])
        assert varying[name] == str(metric.get_signature()) and "nrefs:var" in varying[name]


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.mark.parametrize("classes, digits", [(2, 0), (5, 6)])  # with many ties, and without
def test_classification_equals_scikit_learn(draw, classes, digits):
    sklearn = pytest.importorskip("sklearn.metrics")
    truths = draw.choice(4, 200, p=[0.5, 0.25, 0.15, 0.1]) % classes
    scores = (draw.normal(size=(200, classes)) + 1.5 * np.eye(classes)[truths]).round(digits)
    found, chosen, here = classification(truths, scores), scores.argmax(-1), np.unique(truths)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(truths, chosen))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(truths, chosen, labels=here, average="macro"))
    assert found["uar"] == pytest.approx(sklearn.recall_score(truths, chosen, labels=here, average="macro"))
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    areas = [sklearn.roc_auc_score(truths == one, shares[:, one].round(12)) for one in here]
    assert found["auroc"] == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("digits", [0, 6])  # with many ties, and without
def test_multi_label_equals_scikit_learn(draw, digits):
    sklearn = pytest.importorskip("sklearn.metrics")
    truths = draw.integers(0, 2, (100, 6))
    scores = (draw.normal(size=truths.shape) + truths).round(digits)
    found = multi_label(truths, scores)
    assert found["accuracy"] == pytest.approx(1 - sklearn.hamming_loss(truths, scores > 0))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(truths, scores > 0, average="macro"))
    assert found["auroc"] == pytest.approx(sklearn.roc_auc_score(truths, scores, average="macro"))


@pytest.mark.parametrize("digits", [0, 6])
def test_regression_equals_scipy(draw, digits):
    stats = pytest.importorskip("scipy.stats")
    truths = draw.normal(size=(60, 3)).round(digits)
    predictions = (truths + draw.normal(size=truths.shape)).round(digits)
    found = regression(truths, predictions)
    columns = list(zip(truths.T, predictions.T, strict=True))
    assert found["mae"] == pytest.approx(np.mean([np.abs(a - b).mean() for a, b in columns]))
    assert found["rmse"] == pytest.approx(np.mean([((a - b) ** 2).mean() ** 0.5 for a, b in columns]))
    assert found["pearson"] == pytest.approx(np.mean([stats.pearsonr(*pair).statistic for pair in columns]))
    assert found["spearman"] == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in columns]))


def test_replies_by_hand():
    found = reply_metrics(["The red cat.", "two dogs", "a house"], ["red cat", "Two big dogs!", "nothing"])
    assert found["exact_match"] == pytest.approx(1 / 3)  # without articles, case and punctuation
    assert found["f1"] == pytest.approx((1 + 2 * 2 / 5 + 0) / 3)
    same = reply_metrics(["a cat sat on the mat"] * 2, ["a cat sat on the mat"] * 2)
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100) and same["wer"] == 0
    assert reply_metrics([], []) == {}


def test_rouge_is_that_of_google():
    """The first pair is the one of rouge_score's page; the values are those of rouge_score 0.1.2 without its stemmer."""
    pairs = {
        ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."): (
            0.705882,
            0.266667,
            0.588235,
        ),
        ("format date and time", "Format the date, and the time-of-day (UTC+1)"): (0.571429, 0.166667, 0.571429),
        ("a b a b c", "b a b c a"): (1.0, 0.75, 0.8),
        ("one", ""): (0.0, 0.0, 0.0),
    }
    for pair, expected in pairs.items():
        assert [rouge(*pair, n) for n in (1, 2, None)] == pytest.approx(expected, abs=1e-6)
    references, hypotheses = zip(*pairs, strict=True)
    found = of_split(partial(text_metrics, names=("rouge1", "rouge2", "rougeL")))(references, hypotheses)
    assert list(found.values()) == pytest.approx(np.mean(list(pairs.values()), axis=0), abs=1e-6)


def test_perplexities_are_of_all_tokens_and_words_of_a_split():
    task, nll = LanguageModel(outputs=9), [np.array([1.0, 2.0], np.float32), np.array([3.0], np.float32)]
    items = [Item(number, text, one) for number, (text, one) in enumerate(zip(["one two", "three"], nll, strict=True))]
    found = metrics.values(task.statistics(items), 2)
    assert found == pytest.approx({"perplexity": math.exp(6 / 3), "word_perplexity": math.exp(6 / 3)})
    drawn = task.statistics(items)["perplexity"](np.array([[2, 0], [0, 0]]))  # the first text twice; nothing
    assert drawn[0] == pytest.approx(math.exp(1.5)) and np.isnan(drawn[1])
    assert task.lines("words", {"words": found["perplexity"], "words/nll": [1, 2]}) == [
        "words: perplexity 7.389 of 2 tokens"
    ]


def mean_cider(references, hypotheses):
    return cider(references, hypotheses).mean()


def test_cider_is_10_for_equal_texts_and_counts_rare_words_more():
    references = ["a red cat on a mat", "a dog on a mat", "two birds in a tree", "a car on a road"]
    assert mean_cider(references, references) == pytest.approx(10)
    assert mean_cider(references, ["nothing"] * 4) == 0
    rare, common = ([references[0].replace(word, "x"), *references[1:]] for word in ("cat", "on"))
    assert mean_cider(references, rare) < mean_cider(references, common) < 10
    # by hand: of two texts, one gram of one word is equal, of three; the other two occur once, too: weights log 2
    assert mean_cider(["red cat runs", "x"], ["red y z", "x"]) == pytest.approx(10 / 4 * (1 / 3 + 1) / 2)


def test_vqa_accuracy_by_hand():
    """An answer of three or more of ten people is right; with two, eight of the ten groups of nine hold both."""
    answers = ["Yes."] * 5 + ["the yes"] * 2 + ["no", "no", "2"]
    assert vqa_accuracy(answers, "yes") == 1.0
    assert vqa_accuracy(answers, "No!") == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10)
    assert vqa_accuracy(answers, "two") == pytest.approx(9 / 10 / 3)
    assert vqa_accuracy(answers, "maybe") == 0.0
    assert (vqa_accuracy(["red"], "Red"), vqa_accuracy(["red"], "blue")) == (1.0, 0.0)


def test_answers_are_compared_in_the_form_of_the_official_evaluation():
    """The second texts, and the accuracies, are those of `vqaEval.py` of VQA."""
    for text, form in {
        "The black/white T-shirt": "black white t shirt",
        "yes, a dog!": "yes dog",
        "10,000-ish": "10000ish",
        "1.5 ft.": "1.5 ft",
        "U.S.": "us",
        "$5 and 50%": "$5 and 50%",
        "7:30 oclock": "7:30 o'clock",
        "None of them isnt": "0 of them isn't",
        "men's": "men's",
        "shouldntve shouldn'tve": "shouldntve shouldn't've",
        "its lets hed": "its lets he'd",
    }.items():
        assert normalised(text) == form
    assert vqa_accuracy(["black/white"] * 4 + ["black and white"] * 6, "black white") == 1.0
    assert vqa_accuracy(["dont know"] * 4 + ["no"] * 6, "don't know") == 1.0
    assert vqa_accuracy(["men's"] * 2 + ["mens"] * 8, "men's") == pytest.approx((8 * 2 / 3 + 2 * 1 / 3) / 10)
    assert [vqa_accuracy(["yes"] * 10, text) for text in (" yes\n", "Yes")] == [1.0, 0.0]  # one answer of all: as it is


def test_metrics_use_all_references_of_an_example():
    sacrebleu = pytest.importorskip("sacrebleu")
    references = [["a dog runs fast", "one quick dog runs"], ["two birds sing in a tree"]]
    said = ["one quick dog runs fast", "two birds in a tree"]
    found = reply_metrics([Alternatives(references[0]), references[1][0]], said)
    streams = [["a dog runs fast", references[1][0]], ["one quick dog runs", None]]
    assert found["bleu"] == pytest.approx(sacrebleu.BLEU().corpus_score(said, streams).score)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(said, streams).score)
    one = reply_metrics([references[0][1], references[1][0]], said)
    assert found["f1"] == one["f1"]  # the best reference
    assert found["wer"] == reply_metrics([references[0][0], references[1][0]], said)["wer"]  # the text that is learned
    same = Alternatives(["a red cat sits", "a red cat sits"])
    assert np.allclose(cider([same, "x"], ["a cat sits", "x"]), cider([same.every[0], "x"], ["a cat sits", "x"]))


def stream(*shape, dtype=np.float32):
    slots = np.tile(np.arange(shape[1]), (shape[0], 1))
    return Stream(np.zeros(shape, dtype), np.ones_like(slots), slots)


@pytest.mark.parametrize(
    "loss, known, given",
    [
        (losses.token_cross_entropy, losses.OF_TOKENS, (stream(1, 4, 5), stream(1, 4, dtype=np.int32))),
        (losses.cross_entropy, losses.OF_CLASSES, (stream(1, 2, 3), stream(1, 2, dtype=np.int32))),
        (losses.sigmoid_cross_entropy, losses.OF_CLASSES, (stream(1, 2, 3), stream(1, 2, 3))),
        (losses.ctc, losses.OF_CTC, (stream(1, 4, 3), stream(1, 2, dtype=np.int32))),
        (losses.contrastive, losses.OF_PAIRS, (stream(1, 2, 2, 4),)),
        (losses.si_sdr, losses.OF_WAVEFORMS, (stream(1, 4, 3), stream(1, 4, 3))),
    ],
)
def test_what_a_loss_gives_beside_the_loss_is_known(loss, known, given):
    assert jax.eval_shape(loss, *given).keys() == {"loss", *known}


def test_metrics_are_written_as_they_say():
    assert (
        Metric().written(0.123456) == "0.1235" and Metric(digits=2).written(0.123456, (0.1, 0.22)) == "0.1 [0.1, 0.2]"
    )
    share = Metric(percent=True)
    assert share.written(0.123) == "12.30 %" and share.written(0.123, (0.11, 0.137)) == "12.3 % [11.0, 13.7]"
    assert share.written(None) == share.written(float("nan")) == ""


def test_a_table_names_the_metrics_that_it_leaves_out():
    known = known_of({"said": CTC(), "mood": Classify()})
    found = {"said/wer": 0.5, "said/cer": 0.25, "said/ece": 0.125, "said/own": 7, "said/loss": 1, "examples": 9}
    assert shown_metrics([found], known) == ["said/cer", "said/wer", "said/ece", "said/own"]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table({"speech": found | {"mood/accuracy": 0.75}}, "all", known))
    text = capture.get()
    assert all(one in text for one in ("said CER", "said own", "75.00 %", "also measured: said ECE"))
    assert "said ECE │" not in text and "loss" not in text
