"""Statistics of evaluations: groups, intervals, paired comparisons, confusions, robustness, subsets in one pass."""

import dataclasses
import io
import json
import pathlib
import subprocess
import sys
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from mmjax import cli
from mmjax import config as c
from mmjax.data.corruptions import STRENGTHS, Corrupted, corrupted, with_noise
from mmjax.data.example import Example
from mmjax.data.labels import Label
from mmjax.errors import UserError
from mmjax.evaluate.comparison import Scores, compare, read_saved
from mmjax.evaluate.intervals import intervals, paired, resamples
from mmjax.evaluate.measures import Measures, of_function
from mmjax.models.task import Facts, Item, known_of
from mmjax.stream import Stream
from mmjax.tasks import Classify
from mmjax.tasks.confusions import confused_words, confusion_matrix
from mmjax.tasks.metrics import (
    classification,
    evaluate,
    mean,
    multi_label,
    regression,
    values,
)
from mmjax.tasks.text_metrics import ERROR_RATES, OF_REPLIES, known_of_texts, text_metrics

pytestmark = pytest.mark.slow

WORDS = ["a", "the", "red", "blue", "cat", "dog", "sat", "ran", "on", "mat"]


def texts(draw, count):
    """References and hypotheses with some wrong words."""
    references = [" ".join(draw.choice(WORDS, draw.integers(1, 8))) for _ in range(count)]
    hypotheses = [" ".join(w if draw.random() < 0.8 else draw.choice(WORDS) for w in r.split()) for r in references]
    return references, hypotheses


def cases(draw, count=24):
    """(metrics of a function of two sequences, truths, predictions) of every kind."""
    references, hypotheses = texts(draw, count)
    truths = draw.integers(0, 4, count)
    numbers = draw.normal(size=(count, 2)).round(1)
    return {
        "classes": (classification, truths, draw.normal(size=(count, 5)).round(1) + np.eye(5)[truths]),
        "several": (multi_label, draw.integers(0, 2, (count, 3)), draw.normal(size=(count, 3)).round(1)),
        "numbers": (regression, numbers, numbers + draw.normal(size=(count, 2)).round(1)),
        "texts": (text_metrics, references, hypotheses),
        "replies": (partial(text_metrics, names=OF_REPLIES), references, hypotheses),
    }


def chosen(sequence, places):
    return sequence[places] if isinstance(sequence, np.ndarray) else [sequence[i] for i in places]


@pytest.mark.parametrize("kind", ["classes", "several", "numbers", "texts", "replies"])
def test_a_metric_of_counts_is_that_of_the_repeated_examples(kind):
    """Of a resample, of a group, and of one example: equal to the metric of a list with the examples repeated."""
    draw = np.random.default_rng(5)
    function, truths, predictions = cases(draw)[kind]
    counts = draw.integers(0, 3, (6, len(truths))).astype(float)
    counts[4], counts[5] = np.arange(len(truths)) < 5, np.arange(len(truths)) == 3
    found = evaluate(function(truths, predictions), counts)
    for row, of_each in enumerate(counts):
        places = np.repeat(np.arange(len(truths)), of_each.astype(int))
        ours = {name: one[row] for name, one in found.items() if not np.isnan(one[row])}
        theirs = values(function(chosen(truths, places), chosen(predictions, places)), len(places))
        ours.pop("cider", None), theirs.pop("cider", None)  # words are rare among all references
        assert ours == pytest.approx(theirs), row


def test_intervals_equal_a_plain_loop_over_resamples():
    references, hypotheses = texts(np.random.default_rng(0), 20)
    statistics = text_metrics(references, hypotheses)
    found = intervals(statistics, 20, count=200, seed=3)
    rates = []
    for drawn in np.concatenate(list(resamples(np.arange(20), 200, 3))):
        places = np.repeat(np.arange(20), drawn.astype(int))
        rates.append(values(text_metrics(chosen(references, places), chosen(hypotheses, places)), 20)["wer"])
    assert found["wer"] == pytest.approx(tuple(np.quantile(rates, [0.025, 0.975])))
    assert found == intervals(statistics, 20, count=200, seed=3) != intervals(statistics, 20, count=200, seed=4)


def test_a_task_with_plain_metrics_has_intervals_too():
    """`Task.metrics` of a user's task, which is called with repeated items: as the fast form of the same metric."""
    items = [Item(n, n % 3 == 0, None) for n in range(15)]
    slow = of_function(lambda some: {"share": float(np.mean([item.truth for item in some]))}, items)
    fast = {"share": mean([item.truth for item in items])}
    assert intervals(slow, 15, count=100)["share"] == pytest.approx(intervals(fast, 15, count=100)["share"])


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 200 samples of 80 examples with a true accuracy of 0.7, about 95 % of the intervals contain it."""
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = intervals({"accuracy": mean(draw.random(80) < 0.7)}, 80, count=300)["accuracy"]
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_drawing_speakers_together_widens_intervals_if_their_examples_are_alike():
    speakers = np.repeat(np.arange(10), 20)
    right = {"accuracy": mean(speakers % 2)}  # all or no examples of a speaker are right
    (low, high), (lower, higher) = (intervals(right, 200, clusters=one)["accuracy"] for one in (None, speakers))
    assert high - low < 0.15 < 0.4 < higher - lower
    # The theory: the standard deviation of a mean of 10 speakers, or of 200 examples.
    assert (higher - lower) / (high - low) == pytest.approx(np.sqrt(20), rel=0.2)


def test_the_paired_bootstrap_finds_a_small_but_consistent_difference():
    """Both models fail on the same hard examples, so their intervals overlap; the second corrects a few more."""
    draw = np.random.default_rng(2)
    first = draw.random(400) < 0.6
    second = first | (draw.random(400) < 0.08)
    other = draw.random(400) < 0.6  # as good as the first, independently
    everything = np.arange(400)

    def against(right):
        sizes = (400, 400)
        return paired({"accuracy": mean(first)}, {"accuracy": mean(right)}, (everything, everything), sizes)["accuracy"]

    better, same, unlike = against(second), against(first), against(other)
    ranges = [intervals({"x": mean(one)}, 400)["x"] for one in (first, second)]
    assert ranges[0][1] > ranges[1][0]  # the two intervals overlap
    assert better.value == pytest.approx(second.mean() - first.mean()) and 0 < better.low <= better.value <= better.high
    assert better.p < 0.01 and better.above > 0.99
    assert (same.value, same.low, same.high, same.p, same.above) == (0, 0, 0, 1, 0.5)
    assert unlike.p > 0.05 and unlike.low < 0 < unlike.high


def scores(numbers, references, hypotheses):
    return Scores(
        np.array(numbers), references, text_metrics(references, hypotheses), known=known_of_texts(ERROR_RATES)
    )


def test_models_are_compared_on_common_examples_with_equal_references():
    first = scores([0, 1, 2, 3], ["a b", "c d", "e", "f"], ["a b", "c x", "e", "x"])
    second = scores([1, 2, 3, 7], ["c d", "other", "f", "g"], ["c d", "e", "x", "g"])  # example 2 has another reference
    found = compare({"one": {"said": first}, "two": {"said": second}})
    assert found["examples"] == {"said": 2} and found["left_out"] == {"said": 2}
    one, two = found["metrics"]["said/wer"].values()
    assert one["value"] == pytest.approx(2 / 3) and two["value"] == pytest.approx(1 / 3)  # of examples 1 and 3
    assert two["difference"]["value"] == pytest.approx(-1 / 3) and two["difference"]["better"] > 0.5
    with pytest.raises(UserError, match="one and two have no example of 'said' with equal references"):
        compare({"one": {"said": first}, "two": {"said": scores([2], ["other"], ["x"])}})
    with pytest.raises(UserError, match="no example of 'said' in common"):
        compare({"one": {"said": first}, "two": {"said": scores([9], ["e"], ["x"])}})
    with pytest.raises(UserError, match="have no task in common"):
        compare({"one": {"said": first}, "two": {"heard": second}})


def saved(path, hypotheses, references=("a b c", "d e", "f")):
    """As `mmjax eval --save` writes it."""
    kinds = {
        "said": lambda a, b: {"reference": a, "hypothesis": b},
        "answer": lambda a, b: {"reference": a[0], "hypothesis": b[0], "probabilities": {b[0]: 1.0}},
        "number": lambda a, b: {"reference": {"words": len(a.split())}, "hypothesis": {"words": len(set(b.split()))}},
        "pairs": lambda a, b: {"reference": None, "hypothesis": 0.5},
    }
    lines = [
        {
            "number": n,
            "subset": "speech",
            "groups": {"speaker": f"s{n % 2}"},
            "tasks": {t: f(*pair) for t, f in kinds.items()},
        }
        for n, pair in enumerate(zip(references, hypotheses, strict=True))
    ]
    lines.append({"number": 9, "subset": "speech", "error": "cannot decode it"})
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def test_saved_evaluations_are_compared_and_plotted(tmp_path, capsys):
    one = saved(tmp_path / "one.jsonl", ["a b x", "d e", "x"])
    two = saved(tmp_path / "two.jsonl", ["a b c", "d e", "f"])
    picture = tmp_path / "both.svg"
    assert cli.main(["compare", str(one), str(two), "--json", "--picture", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    rates = found["metrics"]["said/wer"]
    assert found["subset"] == "speech" and found["examples"] == {"said": 3, "answer": 3, "number": 3}
    assert found["metrics"]["answer/accuracy"][str(one)]["value"] == pytest.approx(2 / 3)
    assert found["metrics"]["number/mae"][str(two)]["value"] == 0
    assert [rates[str(path)]["value"] for path in (one, two)] == pytest.approx([2 / 6, 0])
    assert rates[str(two)]["difference"]["value"] == pytest.approx(-2 / 6)
    assert "<svg" in picture.read_text() and "said WER" in picture.read_text()
    assert cli.main(["compare", str(one), str(two)]) == 0
    out = capsys.readouterr().out
    assert "said WER" in out and "one.jsonl" in out and "33.3 % [0.0," in out and str(tmp_path) not in out
    for arguments, message in (
        ([one, one], "a run is named twice"),
        ([one, tmp_path / "none.jsonl"], "none.jsonl; name a run directory, or a file of"),
        ([one, two, "--by", "language"], "have no groups by 'language'"),
        ([one, two, "--subset", "image"], "has not measured 'image'"),
        ([one, two, "--picture", "x.png"], "ends with .svg"),
    ):
        assert cli.main(["compare", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is no saved evaluation"):
        read_saved(tmp_path / "bad.jsonl")


class Source(list):
    """Four examples of two languages; one has none."""

    groups = {"language": (np.array([0, 1, 0, -1]), ["de", "en"])}
    labels = {"speaker": Label("class", ("ann", "bob"))}


KNOWN = known_of({"answer": Classify()})


def measured():
    """Example 3 has no label, and example 1 is wrong."""
    slots = np.array([[1, 2, 3, 4]])
    logits = np.array([[[2, 0, 0], [0, 1, 0], [0, 0, 3], [0, 0, 1]]], np.float32)
    found = Measures({"answer": Classify(outputs=3)}, Facts(None, {"answer": ["red", "green", "blue"]}), Source())
    speakers = ({"speaker": 1}, {"speaker": 1}, {}, {"speaker": 0})
    found._source.extend(Example(labels=speakers[n], name=f"x{n}") for n in range(4))
    labels = Stream(np.array([[0, 0, 2, 9]]), np.array([[1, 2, 3, 0]]), slots)
    found.add(
        Stream(np.arange(4)[None], slots, slots), {}, {"answer": Stream(logits, slots, slots)}, {"answer": labels}
    )
    return found


def test_every_metric_of_a_group_has_its_number_of_examples():
    found = measured().metrics()
    counts = {name: count for name, count in found.items() if "examples" in name}
    of_groups = {"answer/examples/language/de": 2, "answer/examples/language/en": 1}
    assert counts == {"examples": 4, "answer/examples": 3, **of_groups}
    assert (found["answer/accuracy/language/de"], found["answer/accuracy/language/en"]) == (1, 0)
    ranges = measured().intervals()
    assert ranges["answer/accuracy/language/de"] == (1, 1) and ranges["answer/accuracy"][0] < 1


def test_groups_are_tags_or_labels():
    found = measured()  # examples 0, 1 and 2 of 4 have the task's label
    assert found.clusters("answer", None).tolist() == [0, 1, 2]
    assert found.clusters("answer", "language").tolist() == [0, 1, 0]
    first, second, alone = found.clusters("answer", "speaker").tolist()
    assert first == second != alone
    saved_groups = [line.get("groups", {}) for line in found.lines("speaker")]
    assert saved_groups == [
        {"language": "de", "speaker": "bob"},
        {"language": "en", "speaker": "bob"},
        {"language": "de"},
        {"speaker": "ann"},
    ]
    with pytest.raises(UserError, match="no example has the group 'speakr'; did you mean 'speaker'"):
        found.clusters("answer", "speakr")


def test_tables_show_counts_of_tasks_and_groups(capsys):
    from rich.console import Console

    from mmjax.evaluate.tables import table

    def lines(*intervals):
        console = Console(width=120)
        with console.capture() as capture:
            console.print(table({"text": measured().metrics()}, "a split", KNOWN, *intervals))
        return capture.get().splitlines()

    whole = next(line.split() for line in lines() if "text" in line and "66.67 %" in line)
    assert "3" in whole and "4" in whole  # examples of the task, and of the split
    german = next(line for line in lines() if "language de" in line)
    assert "100.00 %" in german and "2" in german.split()
    shown = "\n".join(lines({"text": measured().intervals()}))
    assert "66.7 % [0.0, 100.0]" in shown and "100.0 % [100.0, 100.0]" in shown


def test_confusions_are_counted_by_hand():
    assert confusion_matrix([0, 0, 2, 2, 2], [0, 2, 2, 2, 0], ["no", "maybe", "yes"]) == {
        "classes": ["no", "yes"],
        "matrix": [[1, 1], [1, 2]],
    }
    found = confused_words(["the red cat", "the cat", "dog", ""], ["the bed cat sat", "a cat", "", "x"])
    assert sorted(found["substitutions"]) == [["red", "bed", 1], ["the", "a", 1]]
    assert found["deletions"] == [["dog", 1]] and sorted(found["insertions"]) == [["sat", 1], ["x", 1]]
    assert confused_words(["the the"] * 3, ["a a"] * 3)["substitutions"] == [["the", "a", 6]]


def test_the_worst_examples_are_listed_first():
    found = measured().confusions()["answer"]
    assert found["classes"] == ["red", "green", "blue"] and found["matrix"] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    (first,) = found["worst"]  # the others are right
    assert (first["number"], first["name"], first["reference"], first["hypothesis"]) == (1, "x1", "red", "green")
    assert first["error"] == pytest.approx(-np.log(1 / (2 + np.e)))


# Robustness. ----------------------------------------------------------------------------------------------


def recordings(count=6, length=4000):
    draw = np.random.default_rng(0)
    tones = [np.sin(np.arange(length + 100 * n) * (0.05 + 0.02 * n)).astype(np.float32) for n in range(count)]
    return [Example({"speech": draw.uniform(0.1, 1) * tone}) for tone in tones]


@pytest.mark.parametrize("noise", ["white", "babble"])
@pytest.mark.parametrize("snr", [20.0, 0.0])
def test_noise_has_the_ratio_that_is_asked_for(noise, snr):
    clean = recordings()
    noisy = Corrupted(clean, ["speech"], noise, snr)
    for number, example in enumerate(clean):
        samples, changed = example.input("speech"), noisy[number].input("speech")
        added = changed - samples
        assert changed.dtype == np.float32 and len(changed) == len(samples)
        assert 10 * np.log10(np.sum(samples**2) / np.sum(added**2)) == pytest.approx(snr, abs=0.01)
        np.testing.assert_array_equal(changed, Corrupted(clean, ["speech"], noise, snr)[number].input("speech"))
    assert not np.array_equal(noisy[0].input("speech"), Corrupted(clean, ["speech"], noise, snr, 1)[0].input("speech"))
    assert not np.any(with_noise(np.zeros(5, np.float32), np.ones(5), snr))


def test_babble_is_made_of_other_recordings():
    clean = recordings()
    clean[0] = Example({"speech": np.eye(1, 4000, 7, dtype=np.float32)[0]})  # a click, unlike the tones
    added = Corrupted(clean, ["speech"], "babble", 0.0)[0].input("speech") - clean[0].input("speech")
    spectrum = np.abs(np.fft.rfft(added)) ** 2
    assert (
        spectrum[: int(0.2 * 4000 / (2 * np.pi))].sum() > 0.95 * spectrum.sum()
    )  # only tones of up to 0.15 per sample
    with pytest.raises(UserError, match="no other speech that can be read"):
        Corrupted(clean[:1], ["speech"], "babble", 0.0)[0].input("speech")


def picture(size=112):
    """A square on a gradient."""
    array = np.broadcast_to(np.linspace(0, 200, size)[None, :, None], (size, size, 3)).astype(np.uint8).copy()
    array[size // 4 : size // 2, size // 4 : size // 2] = (220, 40, 90)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("corruption", list(STRENGTHS))
def test_pictures_get_worse_with_the_severity(corruption):
    clean = np.asarray(Image.open(io.BytesIO(picture())), np.float64)
    distances = []
    for severity in range(1, 6):
        changed = corrupted(picture(), corruption, severity, np.random.default_rng(0))
        array = np.asarray(Image.open(io.BytesIO(changed)), np.float64)
        assert array.shape == clean.shape
        distances.append(np.abs(array - clean).mean())
    assert distances == sorted(distances) and distances[0] > 0.1


def test_brightness_keeps_the_hue():
    colour = Image.new("RGB", (4, 4), (100, 50, 0))
    buffer = io.BytesIO()
    colour.save(buffer, "PNG")
    changed = Image.open(io.BytesIO(corrupted(buffer.getvalue(), "brightness", 3, None)))
    red, green, blue = changed.getpixel((0, 0))
    assert red == round(100 + 0.3 * 255) and green == pytest.approx(red / 2, abs=1) and blue == 0


# With a run. ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moods(tmp_path_factory):
    """Two runs of a tiny model of texts by several speakers."""
    from mmjax.train.loop import train

    home = tmp_path_factory.mktemp("moods")
    words = [("one", "glad"), ("two", "sad"), ("three", "sad")]
    rows = [{"text": word, "mood": mood, "speaker": f"s{n % 5}"} for n, (word, mood) in enumerate(words * 10) if n != 7]
    (home / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for steps, rate in ((1, 1e-9), (30, 3e-2)):
        config = c.Experiment(
            name="moods",
            steps=steps,
            data=c.Data(
                source=c.Manifest(splits=dict.fromkeys(("train", "test"), str(home / "list.jsonl"))),
                directory=str(home),
                tokenizer=c.SentencePiece(vocabulary=50, byte_fallback=False),
                rows={"text": 40, "examples": 8},
                subsets={"text": 1.0},
                batch_rows=2,
            ),
            model=c.Multimodal(
                encoders={"text": c.MeanEmbedding(vocabulary=50, width=16)},
                fusion=c.Add(width=16),
                tasks={"mood": c.Classify(label="mood")},
            ),
            optimizer=c.Optimizer(schedule=c.Constant(peak=rate)),
            evaluation=c.Evaluation(subsets=()),
            log=c.Log(tensorboard=False),
        )
        train(config, home / f"after{steps}")
    return home / "after1", home / "after30"


def test_runs_are_compared_by_a_column_of_the_data(moods, capsys):
    untrained, trained = map(str, moods)
    assert cli.main(["compare", untrained, trained, "--by", "speaker", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == {"mood": 29} and found["left_out"] == {}
    better = found["metrics"]["mood/accuracy"][trained]["difference"]
    assert better["value"] > 0.2 and better["p"] < 0.05 and better["better"] > 0.95
    assert cli.main(["eval", trained, "--intervals", "speaker"]) == 0
    assert "100.0 % [100.0, 100.0]" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:  # nothing is measured for nothing
        patch.setattr("mmjax.evaluate.evaluation.Evaluator.measure", None)
        for command in (["eval", trained, "--intervals"], ["compare", untrained, trained, "--by"]):
            assert cli.main([*command, "speakr"]) == 2
            assert "no example has the group 'speakr'" in capsys.readouterr().err


def test_what_eval_saves_is_compared_as_the_runs(moods, tmp_path, capsys):
    files = [str(tmp_path / f"{run.name}.jsonl") for run in moods]
    for run, file in zip(moods, files, strict=True):
        assert cli.main(["eval", str(run), "--examples", "9", "--save", file]) == 0
    capsys.readouterr()
    assert cli.main(["compare", *files, "--json"]) == 0
    of_files = json.loads(capsys.readouterr().out)["metrics"]["mood/accuracy"]
    assert cli.main(["compare", str(moods[0]), files[1], "--examples", "9", "--json"]) == 0
    mixed = json.loads(capsys.readouterr().out)["metrics"]["mood/accuracy"]
    assert list(of_files.values()) == list(mixed.values())
    assert of_files[files[1]]["difference"]["value"] > 0.2


def test_eval_gives_intervals_and_confusions(run, capsys):
    asked = ["eval", str(run), "--subset", "speech", "--examples", "12", "--intervals", "--confusions"]
    assert cli.main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    metrics, ranges, confusions = (found[key]["speech"] for key in ("subsets", "intervals", "confusions"))
    assert metrics["answer/examples"] == metrics["transcript/examples"] == 12
    for name in ("answer/accuracy", "answer/macro_f1", "answer/uar", "transcript/cer", "transcript/wer"):
        low, high = ranges[name]
        assert low <= metrics[name] <= high, name
    assert "answer/loss" not in ranges
    matrix = np.array(confusions["answer"]["matrix"])
    assert matrix.sum() == 12 and np.trace(matrix) / 12 == pytest.approx(metrics["answer/accuracy"])
    wrong = [one["error"] for one in confusions["transcript"]["worst"]]
    assert wrong == sorted(wrong, reverse=True) and all(error > 0 for error in wrong)
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    assert "% [" in out and "most frequent wrong words" in out and "the worst examples" in out


def test_robustness_of_a_run_is_a_table_and_a_plot(run, tmp_path, capsys):
    path = tmp_path / "robust.svg"
    asked = ["--examples", "12", "--corruptions", "babble,brightness", "--snr", "10,-20", "--severity", "5"]
    arguments = ["robustness", str(run), *asked, "--picture", str(path)]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["subset"] == "speech+image+text" and found["clean"]["examples"] == 12
    assert [point["level"] for point in found["curves"]["babble"]] == [10, -20]
    losses = [point["metrics"]["transcript/loss"] for point in found["curves"]["babble"]]
    assert len({found["clean"]["transcript/loss"], *losses}) == 3
    (bright,) = found["curves"]["brightness"]
    assert bright["metrics"]["transcript/loss"] == pytest.approx(found["clean"]["transcript/loss"], rel=1e-5)
    assert bright["metrics"]["answer/loss"] != found["clean"]["answer/loss"]
    drawn = ElementTree.parse(path).getroot()
    named = {one.get("aria-label") for one in drawn.iter() if one.get("role") == "img"}
    assert {"babble", "brightness", "clean"} <= named
    for wrong, message in (
        (["--corruptions", "blurr"], "no corruption 'blurr'; did you mean 'blur'"),
        (["--corruptions", "white", "--subset", "image"], "is for recordings"),
        (["--subset", "text"], "nothing to corrupt"),
        (["--severity", "6"], "it must be from 1 to 5"),
    ):
        assert cli.main(["robustness", str(run), *wrong]) == 2
        assert message in capsys.readouterr().err


def test_recordings_and_pictures_are_corrupted_together(run, tmp_path, capsys):
    path = tmp_path / "joint.svg"
    levels = ["--corruptions", "white,gaussian_noise", "--snr", "10,-20", "--severity", "2,5"]
    arguments = ["robustness", str(run), "--examples", "12", *levels, "--joint"]
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    asked = [(one["noise"], one["snr"], one["corruption"], one["severity"]) for one in found["joint"]]
    assert asked == [("white", snr, "gaussian_noise", severity) for snr in (10, -20) for severity in (2, 5)]
    losses = [one["metrics"]["answer/loss"] for one in found["joint"]]
    alone = [one["metrics"]["answer/loss"] for curve in found["curves"].values() for one in curve]
    assert len({*losses, *alone}) == 8, "both inputs are changed"
    assert cli.main([*arguments, "--picture", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "white noise with gaussian_noise" in " ".join(shown.split()) and "severity 5" in shown
    cells = [one.text for one in ElementTree.parse(path).iter() if one.tag.endswith("title")]
    assert any(cell.startswith("white noise -20 dB, gaussian noise severity 5: ") for cell in cells)
    assert cli.main(["robustness", str(run), "--corruptions", "white", "--joint"]) == 2
    assert "name both" in capsys.readouterr().err


def test_robustness_and_comparisons_take_a_checkpoint(moods, tmp_path, capsys):
    run = str(moods[1])
    for command in (["robustness", run], ["compare", *map(str, moods)]):
        assert cli.main([*command, "--step", "7"]) == 2
        assert "has no checkpoint of step 7" in capsys.readouterr().err
    saved = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for path in saved:
        pathlib.Path(path).write_text("{}")
    assert cli.main(["compare", *saved, "--step", "7"]) == 2
    assert "all are saved evaluations" in capsys.readouterr().err


def evaluator(run, changes=None, source=None):
    from mmjax.evaluate.evaluation import Evaluator
    from mmjax.parallel.mesh import make_mesh
    from mmjax.run import Run
    from mmjax.train.build import build_layout, build_source

    opened = Run(run)
    data = dataclasses.replace(tiny().data, **(changes or {}))
    config = dataclasses.replace(tiny(), data=data)
    source = source or build_source(data, "test")
    layout = build_layout(config, source.tokenizer)
    return opened, Evaluator(data, opened.model, layout, opened.facts, source, make_mesh())


class Ragged:
    """A split with examples that lack modalities, one whose recording is too long for a row, and a damaged recording."""

    def __init__(self, source):
        self._source, self.sizes = source, {name: np.array(size) for name, size in source.sizes.items()}
        self._lacks = {0: ("speech",), 5: ("speech", "text"), 6: ("text",)}
        for number, names in self._lacks.items():
            for name in names:
                self.sizes[name][number] = 0
        self.sizes["speech"][8] = 10**7

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __getitem__(self, number):
        example = self._source[number]
        inputs = {name: value for name, value in example.inputs.items() if name not in self._lacks.get(number, ())}
        if number == 9:
            inputs["speech"] = damaged
        return example._replace(inputs=inputs)


def damaged():
    raise UserError("cannot decode it")


@pytest.mark.parametrize("ragged", [False, True])
def test_subsets_in_one_pass_are_measured_as_one_by_one(run, monkeypatch, ragged):
    """Also if examples lack modalities, are too long for a row in some subsets, or are damaged in some."""
    import mmjax.evaluate.evaluation as module
    from mmjax.train.build import build_source

    split = build_source(tiny().data, "test")
    opened, found = evaluator(run, {"batch_rows": 2}, Ragged(split) if ragged else split)
    monkeypatch.setattr(module, "spread", lambda *_: np.arange(len(split)) < 12)
    subsets = ["text", "speech+text"]
    together = found.evaluate(opened.params, subsets)
    for subset in subsets:
        alone = found.evaluate(opened.params, [subset])[subset]
        assert together[subset].keys() == alone.keys()
        for name, value in alone.items():
            assert together[subset][name] == pytest.approx(value, rel=1e-4), (subset, name)
    text, both = together.values()
    if ragged:
        assert (text["examples"], text["lacking"]) == (10, 2) and "skipped" not in text
        assert (both["examples"], both["lacking"], both["skipped"]) == (9, 1, 2)
    else:
        assert text["examples"] == both["examples"] == 12


DEVICES = """
import json, os, sys
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=" + sys.argv[2]
from mmjax.run import evaluate_run
import jax
assert jax.device_count() == int(sys.argv[2])
print(json.dumps(evaluate_run(sys.argv[1], examples=37, subsets=["speech+image"], intervals="example")))
"""


def test_eight_devices_measure_as_one(run):
    """37 examples do not divide among rows and devices: the last batch is not full, and each example counts once."""
    one, eight = (
        json.loads(
            subprocess.run([sys.executable, "-c", DEVICES, run, n], capture_output=True, text=True, check=True).stdout
        )
        for n in ("1", "8")
    )
    ours, theirs = (found["subsets"]["speech+image"] for found in (one, eight))
    assert ours["examples"] == 37 and ours == pytest.approx(theirs, rel=1e-4)
    assert one["intervals"]["speech+image"].keys() == eight["intervals"]["speech+image"].keys() != set()
