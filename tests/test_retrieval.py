"""Recall@k: against ranking by hand, galleries of different items, collapsed models, and a run of three modalities."""

import json

import numpy as np
import pytest

from mmjax import config as c
from mmjax.tasks import retrieval
from mmjax.tasks.metrics import values


def recalls(queries, *others):
    return values(retrieval.recalls(queries, *others), len(queries))


def test_recall_is_that_of_ranking_by_hand():
    draw = np.random.default_rng(0)
    queries, items = draw.standard_normal((30, 4)), draw.standard_normal((30, 4))
    items += queries  # so that some are found
    found = recalls(queries, items, range(30), range(30))
    for k in (1, 5, 10):
        by_hand = np.mean([i in np.argsort(-(items @ queries[i]))[:k] for i in range(30)])
        assert found[f"recall@{k}"] == pytest.approx(by_hand) and 0.2 < by_hand <= 1
        assert found[f"chance@{k}"] == pytest.approx(k / 30)


def test_an_item_of_several_examples_is_in_the_gallery_once_and_any_of_a_querys_items_counts():
    """The rule of COCO captions: five captions for each picture."""
    pictures = np.repeat(np.eye(3), 2, axis=0)  # 3 pictures, each with 2 captions
    captions = np.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]], float)
    names, keys = list("abcdef"), [0, 0, 1, 1, 2, 2]
    to_text = recalls(pictures, captions, keys, names)
    assert (to_text["queries"], to_text["gallery"]) == (3, 6)
    # Picture 0: caption f scores as high as its own b, and counts before it. 1: caption a, likewise. 2: only e.
    assert to_text["recall@1"] == pytest.approx(1 / 3) and to_text["recall@5"] == 1.0
    assert to_text["chance@1"] == pytest.approx(2 / 6) and to_text["chance@5"] == 1.0
    to_picture = recalls(captions, pictures, names, keys)
    assert (to_picture["queries"], to_picture["gallery"]) == (6, 3)
    assert to_picture["recall@1"] == pytest.approx(4 / 6) and to_picture["chance@1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_a_model_that_has_collapsed_finds_nothing(value):
    same = np.full((50, 8), value)
    found = recalls(same, same, range(50), range(50))
    assert found["recall@1"] == found["recall@10"] == 0.0 and found["median_rank"] == 50


def test_the_median_rank_is_that_of_ranking_by_hand():
    draw = np.random.default_rng(1)
    queries, items = draw.standard_normal((30, 4)), draw.standard_normal((30, 4))
    ranks = [1 + np.argsort(-(items @ query)).tolist().index(i) for i, query in enumerate(queries)]
    found = recalls(queries, items, range(30), range(30))
    assert found["median_rank"] == pytest.approx(np.median(ranks)) and found["chance_rank"] == 15.5
    # A resample counts an example as often as it was drawn.
    drawn = draw.integers(0, 4, (5, 30))
    medians = retrieval.recalls(queries, items, range(30), range(30))["median_rank"](drawn.astype(float))
    np.testing.assert_allclose(medians, [np.median(np.repeat(ranks, row)) for row in drawn])


def test_queries_that_share_an_item_count_once_in_the_median_rank():
    """Query a is asked by three examples; its best item counts, and the mean of the ranks in the middle is taken."""
    queries = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], float)
    items = np.array([[0.1, 0.9], [0.3, 0.8], [0.2, 0.7], [0.5, 0.6]])
    found = recalls(queries, items, list("aaab"), range(4))
    assert found["median_rank"] == 3  # of 2 (item 1 after item 3) and 4


def test_the_median_rank_of_guessing_is_that_of_many_random_orders():
    draw, own = np.random.default_rng(2), [1, 1, 5]
    ranks = [draw.permutation(40)[:count].min() + 1 for count in own for _ in range(4000)]
    assert retrieval._chance_rank(40, own) == pytest.approx(np.median(ranks), abs=1)
    assert [retrieval._chance_rank(n, [1]) for n in (1, 2, 7)] == [1, 1.5, 4]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run that compares pictures, recordings and texts of two languages, from two sources."""
    from corpora import make_files, rows

    from mmjax.train.loop import train

    files = make_files(tmp_path_factory.mktemp("pairs"))
    for name, languages in (("first", ("de", "en")), ("second", ("en", "fr"))):
        lines = [
            row | {"text": row["transcript"], "language": languages[number % 2]}
            for number, row in enumerate(rows(files))
        ]
        (files / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = lambda name: c.Manifest(splits=dict.fromkeys(("train", "test"), str(files / f"{name}.jsonl")))  # noqa: E731
    config = c.Experiment(
        name="pairs",
        steps=2,
        data=c.Data(
            source=c.Mixture(sources={"first": manifest("first"), "second": manifest("second")}),
            tokenizer=c.SentencePiece(vocabulary=60, byte_fallback=False),
            batch_rows=2,
            rows={"speech": 400, "image": 64, "text": 64, "transcript": 64, "examples": 4},
            subsets={"speech+image+text": 1.0},
        ),
        model=c.Multimodal(
            encoders={
                "speech": c.Conformer(
                    layers=1, width=16, heads=2, stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=4)
                ),
                "image": c.ViT(patch=8, image_size=32, layers=1, width=16, heads=2, mlp=32),
                "text": c.Transformer(vocabulary=60, layers=1, width=16, heads=2, mlp=32),
            },
            fusion=c.Add(width=16),
            tasks={
                "heard": c.Contrast(between=("speech", "image"), outputs=8),
                "read": c.Contrast(between=("text", "image"), outputs=8, rule="softmax", scale=14.3, limit=100.0),
                "transcript": c.CTC(reads="speech", outputs=60),
                "answer": c.Classify(reads="fused"),
            },
        ),
        optimizer=c.Optimizer(schedule=c.Constant()),
        evaluation=c.Evaluation(subsets=("speech+image+text",)),
        log=c.Log(tensorboard=False),
    )
    run = files / "run"
    return run, train(config, run)["speech+image+text"]


@pytest.mark.slow
def test_evaluation_tells_recall_both_ways(pairs):
    metrics = pairs[1]
    for name in ("heard/speech_to_image", "heard/image_to_speech", "read/text_to_image", "read/image_to_text"):
        assert 1 <= metrics[f"{name}/median_rank"] <= metrics[f"{name}/gallery"]
        assert 0 <= metrics[f"{name}/recall@1"] <= metrics[f"{name}/recall@5"] <= metrics[f"{name}/recall@10"] <= 1
    # 24 examples of 12 different pictures and 5 different texts; recordings are not compared, and all count.
    assert [metrics[f"{n}/gallery"] for n in ("heard/speech_to_image", "heard/image_to_speech")] == [12, 24]
    assert [metrics[f"{n}/gallery"] for n in ("read/text_to_image", "read/image_to_text")] == [12, 5]
    assert metrics["heard/speech_to_image/chance@5"] == pytest.approx(5 / 12)


@pytest.mark.slow
def test_evaluation_tells_sources_and_languages_apart(pairs):
    metrics = pairs[1]
    for task, kind in (("answer", "accuracy"), ("transcript", "cer")):
        groups = {name.split("/", 2)[2] for name in metrics if name.startswith(f"{task}/{kind}/")}
        assert groups == {"source/first", "source/second", "language/de", "language/en", "language/fr"}
        # Both sources have the same files, and one language each of the two halves that take turns.
        by_source = [metrics[f"{task}/{kind}/source/{name}"] for name in ("first", "second")]
        assert by_source[0] == pytest.approx(by_source[1])
    accuracy = [metrics[f"answer/accuracy/language/{name}"] for name in ("de", "en", "fr")]
    assert metrics["answer/accuracy"] == pytest.approx(np.average(accuracy, weights=[6, 12, 6]))


@pytest.mark.slow
def test_eval_shows_them_in_tables(pairs, capsys, monkeypatch):
    from mmjax import cli, progress

    monkeypatch.setattr(progress.out, "width", 200)
    assert cli.main(["eval", str(pairs[0])]) == 0
    shown = capsys.readouterr().out
    for part in (
        "speech to image",
        "recall@10",
        "median rank",
        "by chance",
        "source second",
        "language fr",
        "transcript CER",
    ):
        assert part in shown, part
