"""`mmjax report`: what is on the page of two runs, in headless Chromium where there is one, and samples in TensorBoard.

Texts and classes of the runs are HTML, which the page must show and never run.
"""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import tiny
from PIL import Image
from test_train import payloads

from mmjax import cli
from mmjax import config as c
from mmjax.data.packing import Packer
from mmjax.evaluate.attention import Watcher, _weights
from mmjax.evaluate.pictures import LARGEST, over_picture, spectrogram
from mmjax.models.attend import attention
from mmjax.models.attention import KeyValue, MultiHeadAttention
from mmjax.models.remat import with_remat
from mmjax.report.samples import compared
from mmjax.run import Run
from mmjax.telemetry import ADAPTERS, GUARDS, Writer
from mmjax.train import guards
from mmjax.train.build import build_layout, build_model, build_source, labels_of
from mmjax.train.loop import train
from mmjax.train.report import adapter_record

pytestmark = pytest.mark.slow

RATE, SECONDS = 8_000, 0.5
CLASSES = ("<script>alert(1)</script>", 'red "&" blue')
TEXTS = ("say <script> now", "a & b", "<img src=x onerror=alert(2)>")
BROWSER = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"))), None
)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium-headless-shell")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with a fusion, a classifier and a text decoder over recordings and pictures; and a copy with other losses."""
    home, draw = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    rows = []
    for number in range(6):
        tone = np.sin(2 * np.pi * 1_000 * np.arange(RATE * SECONDS) / RATE)
        soundfile.write(home / f"{number}.wav", 0.5 * tone, RATE)
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), np.uint8)).save(home / f"{number}.png")
        media = {"speech": f"{number}.wav", "image": f"{number}.png"}
        rows.append(
            {**media, "transcript": TEXTS[number % 3], "answer": CLASSES[number % 2], "name": f"<b>{number}</b>"}
        )
    (home / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listed = str(home / "list.jsonl")
    base, small = tiny(), dict(layers=1, width=8, heads=2, mlp=8)
    encoders = {
        "speech": dataclasses.replace(base.model.encoders["speech"], width=8),
        "image": c.ViT(patch=8, image_size=24, class_token=True, **small),
    }
    tasks = {
        "answer": c.Classify(),
        "transcript": c.Write(reads=("speech", "image"), decoder=c.TextDecoder(**small)),
    }
    config = tiny(
        name="tones",
        steps=3,
        data=c.Data(
            source=c.Manifest(splits={"train": listed, "test": listed}),
            directory=str(home / "cache"),
            tokenizer=c.SentencePiece(vocabulary=52, byte_fallback=False),
            batch_rows=2,
            rows={"speech": 160, "image": 30, "transcript": 90, "examples": 3},
            subsets={"speech+image": 1.0},
        ),
        model=c.Multimodal(encoders=encoders, fusion=c.CrossAttention(queries=2, **small | {"layers": 2}), tasks=tasks),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-2)),
        evaluation=c.Evaluation(subsets=("speech+image",), every_steps=2),
        log=c.Log(every_steps=1),
        checkpoint=c.Checkpoint(every_steps=2),
    )
    first, second = home / "first", home / "second"
    train(config, first)
    shutil.copytree(first, second)
    metrics = second / "metrics.jsonl"
    metrics.write_text(re.sub(r'loss": \d', 'loss": 9', metrics.read_text()))  # so that lines do not cover each other
    return first, second


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert cli.main(["report", *map(str, runs), "-o", str(path), "--examples", "2"]) == 0
    return path


class Tags(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its texts by the tag that holds them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def browse(page, *options):
    """What headless Chromium prints about a page."""
    quiet = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=2000"]
    done = subprocess.run([BROWSER, *quiet, *options, page.as_uri()], capture_output=True, timeout=180, check=True)
    return done.stdout.decode()


def dom(page):
    """The page as Chromium has understood it; without Chromium, as it is written."""
    return Tags(browse(page, "--dump-dom") if BROWSER else page.read_text())


def test_the_page_has_curves_metrics_and_examples_of_both_runs(page):
    found = dom(page)
    assert found.texts["h2"] == [
        "Metrics",
        "Training",
        "Throughput and padding",
        "Evaluations",
        "Confusions",
        "Examples",
    ]
    charts = [a["aria-label"] for tag, a in found.tags if tag == "svg"]
    assert {
        "loss",
        "answer/loss",
        "transcript/loss",
        "learning rate",
        "padding",
        "transcript/wer, speech+image",
    } <= set(charts)
    assert {"examples per second", "data wait", "Spectrogram of speech"} <= set(charts)
    assert sum(title.startswith("goodput of ") for title in charts) == 2
    said = found.texts["text"]
    assert {"first", "second", "step", "time in s", "frequency in kHz", "examples per second"} <= set(said)
    cells = found.texts["td"]
    assert "transcript WER" in cells and re.search(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", "\n".join(cells))
    titles = found.texts["h3"]
    assert sum(title.startswith("Example ") for title in titles) == 2 and "Example 0: <b>0</b>" in titles


def test_examples_have_picture_sound_reference_and_marked_prediction(page):
    found = dom(page)
    media = [a for tag, a in found.tags if tag in ("img", "audio")]
    assert all(a["src"].startswith("data:") and (a.get("alt") or a.get("aria-label")) for a in media)
    assert sum(tag == "audio" for tag, _ in found.tags) == 2
    assert any(tag in ("del", "ins") or a.get("class") == "sub" for tag, a in found.tags), "an untrained model errs"
    assert found.texts["td"].count("reference") == 4  # two tasks of two examples
    assert TEXTS[0] in found.texts["td"] and CLASSES[0] in found.texts["td"]


def test_attention_is_shown_over_patches_and_frames_for_the_fusion_and_the_decoder(page):
    found = dom(page)
    pictures = [a["alt"] for tag, a in found.tags if tag == "img" and a["alt"].startswith("attention")]
    assert pictures[:4] == [
        f"attention of {run}: {part} over image" for run in ("first", "second") for part in ("fusion", "transcript")
    ]
    told = [text for text in found.texts["p"] if text.startswith("Attention of")]
    for text in told:
        assert sum(map(int, re.findall(r"(\d+) %", text))) in (99, 100, 101) and "speech" in text
    assert len(told) == len(pictures) == 8 and {"query", "token"} <= set(found.texts["text"])


def test_the_confusion_matrix_counts_all_examples(page):
    said = [text for text in dom(page).texts["title"] if text.startswith("truth ")]
    counts = [int(re.search(r": (\d+) \(", text)[1]) for text in said]
    assert sum(counts) == 2 * 6 and any(f"truth {CLASSES[0]}, prediction {CLASSES[1]}" in text for text in said)


def test_nothing_that_users_wrote_runs_and_nothing_is_loaded(page):
    text, found = page.read_text(), dom(page)
    assert "&lt;script&gt;" in text and not [
        tag for tag, _ in found.tags if tag in ("script", "b", "i", "link", "iframe")
    ]
    assert not [a for _, attributes in found.tags for a in attributes if a.startswith("on")]
    places = [a[key] for _, a in found.tags for key in ("src", "href") if key in a]
    assert places and all(place.startswith("data:") for place in places)
    assert len(text) < 1_000_000


def picture_of(page, path, *options):
    browse(page, f"--screenshot={path}", *options)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@in_browser
@pytest.mark.parametrize("width", [1280, 480])
def test_nothing_is_cut_off_at_the_right(page, tmp_path, width):
    seen = picture_of(page, tmp_path / "page.png", f"--window-size={width},5000")
    assert seen.shape[1] == width and (seen[:, -8:] == 255).all(), "the margin is empty"
    assert np.ptp(seen[:, 20:-20].max(axis=2), axis=1).astype(bool).mean() > 0.5, "most lines show something"
    blue = (np.abs(seen - [0, 114, 178]).sum(axis=2) < 8).any(axis=1)
    orange = (np.abs(seen - [213, 94, 0]).sum(axis=2) < 8).any(axis=1)
    assert blue.sum() > 80 and orange.sum() > 80, "the lines of both runs"


@in_browser
def test_the_page_is_dark_where_the_reader_wants_it(page, tmp_path):
    seen = picture_of(page, tmp_path / "page.png", "--window-size=900,900", "--blink-settings=preferredColorScheme=0")
    paper = seen[-1, 0]
    assert (paper < 40).all() and (seen.max(axis=(0, 1)) > 200).all(), "light ink on dark paper"


def test_a_run_without_a_checkpoint_has_curves_alone(runs, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(runs[0] / name, tmp_path / "begun" / name)
    assert cli.main(["report", str(tmp_path / "begun"), "-o", str(tmp_path / "page.html")]) == 0
    found = Tags((tmp_path / "page.html").read_text())
    assert found.texts["h2"] == ["Metrics", "Training", "Throughput and padding", "Evaluations"]
    assert any("has no checkpoint yet" in text for text in found.texts["td"])
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "begun"), "-o", str(tmp_path / "no" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_checkpoint_a_split_and_a_subset_can_be_chosen(runs, tmp_path, capsys):
    run, out = shutil.copytree(runs[0], tmp_path / "run"), str(tmp_path / "page.html")
    (run / "best.json").write_text('{"best": 2, "evaluations": [[2, 0.1], [3, 0.2]]}')
    asked = ["report", "--split", "train", str(run), "-o", out, "--examples", "1"]
    overrides = ["--data.batch-rows", "1"]
    assert cli.main([*asked, "--step", "best", "--subset", "image", *overrides]) == 0
    cells = Tags((tmp_path / "page.html").read_text()).texts["td"]
    assert {"2", "6 of train, image"} <= set(cells)
    assert cli.main(asked) == 0
    cells = Tags((tmp_path / "page.html").read_text()).texts["td"]
    assert {"3 (the best one is 2: --step best)", "6 of train, speech+image"} <= set(cells)
    for wrong, message in (
        (["--step", "1"], "no checkpoint of step 1; there are those of 2, 3"),
        (["--subset", "imag"], "there is no subset 'imag'; did you mean 'image'?"),
        (["--data.batch-row", "1"], "batch_rows"),
    ):
        assert cli.main([*asked, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_what_the_training_changed_is_on_the_page(runs, tmp_path):
    (tmp_path / "begun").mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(runs[0] / name, tmp_path / "begun" / name)
    measures = {"manual pages": {"chat/perplexity": 8.0}}, {"manual pages": {"chat/perplexity": 9.0}}
    (tmp_path / "begun" / guards.FILE).write_text(json.dumps(measures[0]))
    changes = {"one.kernel": np.array([0.1, 0.2]), "two.kernel": np.array([0.1, 0.0])}
    writer = Writer(tmp_path / "begun", tensorboard=False)
    writer.write(3, GUARDS, guards.record(measures[1]))
    writer.write(3, ADAPTERS, adapter_record(changes))
    writer.close()
    assert cli.main(["report", str(tmp_path / "begun"), "-o", str(tmp_path / "page.html")]) == 0
    found = Tags((tmp_path / "page.html").read_text())
    assert "What the training changed" in found.texts["h2"]
    cells = found.texts["td"]
    assert cells[cells.index("manual pages") :][:5] == ["manual pages", "chat/perplexity", "8", "9", "+12.5 %"]
    said = "\n".join(found.texts["p"])
    assert "did NOT change their kernels: 1 of 2: two.kernel" in said and "each layer by 0 % to 20 %" in said


def test_all_runs_are_checked_before_the_first_is_measured(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmjax.report.subject.Measured", None)
    missing = tmp_path / "e.jsonl"
    assert cli.main(["report", str(runs[0]), str(missing), "-o", str(tmp_path / "page.html")]) == 2
    assert f"{missing} is not a run directory: there is no such file or directory" in capsys.readouterr().err


def test_tensorboard_gets_the_inputs_once_and_the_predictions_of_each_evaluation(runs):
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (runs[0] / "tensorboard").iterdir()
    events = [Event.FromString(payload) for payload in payloads(file.read_bytes())]
    shown = [(event.step, one) for event in events for one in event.summary.value if one.tag.startswith("example_0/")]
    kinds = [(step, one.tag.partition("/")[2], one.WhichOneof("value")) for step, one in shown]
    assert sorted(kinds) == [
        (2, "image", "image"),
        (2, "predictions/text_summary", "tensor"),
        (2, "speech", "audio"),
        (2, "speech_spectrogram", "image"),
        (3, "predictions/text_summary", "tensor"),
    ]
    (written,) = [one.tensor.string_val[0].decode() for step, one in shown if step == 3]
    assert "| transcript | say &lt;script&gt; now |" in written and "<script>" not in written


# Parts of the page. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference, hypothesis, marked, remark",
    [
        ("a b c", "a b c", "a b c", "right"),
        ("a b c", "a x c", 'a <span class=sub title="instead of: b">x</span> c', "1 of 3 words wrong"),
        ("a b c d e", "a c d e f", "a <del>b</del> c d e <ins>f</ins>", "2 of 5 words wrong"),
        ("", "<i>", "<ins>&lt;i&gt;</ins>", "1 of 0 words wrong"),
        ('"q" b', "", "<del>&quot;q&quot; b</del>", "2 of 2 words wrong"),
    ],
)
def test_errors_of_a_text_are_marked_by_word(reference, hypothesis, marked, remark):
    assert compared(reference, hypothesis) == (marked, remark)


def test_a_spectrogram_shows_a_tone_at_its_frequency_and_time():
    time = np.arange(2 * RATE) / RATE
    seen = spectrogram(np.where(time > 1, np.sin(2 * np.pi * 1_000 * time), 0), RATE)
    loudest, column = np.unravel_index(seen.argmax(), seen.shape)
    frequency = (len(seen) - 0.5 - loudest) / len(seen) * RATE / 2
    assert abs(frequency - 1_000) < RATE / 2 / len(seen) and column > seen.shape[1] / 2
    assert (
        seen.min() == 0
        and seen[:, : seen.shape[1] // 2 - 2].max() == 0
        and spectrogram(np.zeros(3), RATE).shape[1] == 1
    )


def test_attention_over_a_picture_colours_the_patches_by_weight():
    seen = np.asarray(over_picture(Image.new("RGB", (20, 10)), np.array([0, 1]), np.array([[0, 0], [0, 1]])))
    assert seen.shape == (LARGEST // 2, LARGEST, 3)
    assert (seen[:, : LARGEST // 2] == seen[0, 0]).all() and (seen[:, LARGEST // 2 :] == seen[0, -1]).all()
    assert seen[0, -1].sum() > 3 * seen[0, 0].sum()


def test_the_shown_weights_are_those_that_attention_applies():
    draw = np.random.default_rng(0)
    query, key = (
        jnp.asarray(draw.normal(size=(2, heads, length, 4)), jnp.float32) for heads, length in ((4, 5), (2, 6))
    )
    segments, keys = jnp.array([[1, 1, 2, 2, 0]] * 2), jnp.array([[1, 1, 1, 2, 2, 0]] * 2)
    module = MultiHeadAttention(16, 4, style=c.BlockStyle(soft_cap=3.0, key_value_heads=2))
    found = _weights(module, query, KeyValue(key, key), segments, keys)
    each = jnp.broadcast_to(jnp.eye(6), (2, 2, 6, 6))  # so that the result of attention is its weights
    applied = attention(query, key, each, segments, keys, soft_cap=3.0).mean(axis=1)
    np.testing.assert_allclose(found, applied, atol=1e-6)
    assert found[:, 4].max() == 0 and np.allclose(found[:, :4].sum(-1), 1)


def test_where_a_model_looks_does_not_depend_on_how_its_layers_run(runs):
    run = Run(runs[0])
    source = build_source(run.config.data, "test", run.directory, labels_of(run.config))
    packer = Packer(build_layout(run.config, run.tokenizer), 1)
    packer.add(0, source[0], frozenset({"speech", "image"}))
    unrolled = build_model(dataclasses.replace(with_remat(run.config.model, "full"), unroll=True))
    ours, theirs = (Watcher(model).looks(run.params, packer.batch) for model in (run.model, unrolled))
    assert {(part, stream) for part in ours for stream in ours[part]} == {
        (part, stream) for part in ("fusion", "transcript") for stream in ("speech", "image")
    }
    for part, streams in ours.items():
        whole = sum(looks.weights.sum(axis=1) for looks in streams.values())
        np.testing.assert_allclose(whole, 1, rtol=1e-5)
        for stream, looks in streams.items():
            np.testing.assert_allclose(looks.weights, theirs[part][stream].weights, atol=1e-6)
    assert len(ours["fusion"]["speech"].weights) == 2  # queries
    image = ours["transcript"]["image"]
    assert image.weights.shape[1] == 10 and sorted(map(tuple, image.places.tolist()))[:2] == [(-1, -1), (0, 0)]
