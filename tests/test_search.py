"""`mmjax index` and `mmjax search`: exact, packed, resumable, by the task that joins query and items."""

import json
import pathlib
import re
import shlex
import shutil

import fsspec
import jax
import numpy as np
import pytest
import soundfile
from flax.traverse_util import flatten_dict
from PIL import Image

import mmjax
from mmjax import config as c
from mmjax.cli import main
from mmjax.data import embedded
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.interchange import directories
from mmjax.models.task import Facts
from mmjax.search import joined
from mmjax.train.build import build_layout, build_model, resolved
from mmjax.train.directory import UNTRAINED
from mmjax.train.step import init_parameters, unboxed

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "using-a-run.md"
RATE = 16_000
DRAW = np.random.default_rng(0)
WORDS = ["a red circle", "a blue square", "what is said here", "nothing at all"]
IDENTITY = {"run": "run", "step": 1, "parameters": "p"}
NAMES = [f"picture{number}.png" for number in range(6)]


def write_run(folder, seed=0):
    """A run, not trained, that compares speech with pictures and texts with pictures."""
    tokenizer = Tokenizer.train(WORDS, 60)
    small = dict(layers=1, width=16, heads=2)
    config = c.Experiment(
        name="searched",
        steps=1,
        data=c.Data(
            source=c.Manifest(splits={"train": "train.tsv"}),
            rows={"speech": 120, "image": 48, "text": 32, "examples": 3},
            subsets={"speech+image+text": 1.0},
        ),
        model=c.Multimodal(
            encoders={
                "speech": c.Conformer(**small, stem=c.StridedStem(channels=4), convolution=c.Convolution(kernel=3)),
                "image": c.ViT(**small, patch=8, image_size=32, mlp=32),
                "text": c.MeanEmbedding(width=16),
            },
            tasks={
                "seen": c.Contrast(between=("text", "image"), outputs=8),
                "heard": c.Contrast(between=("speech", "image"), outputs=12),
            },
        ),
        optimizer=c.Optimizer(schedule=c.Constant(peak=1e-3)),
    )
    config = resolved(config, Facts(tokenizer))
    batch = build_layout(config, tokenizer).empty(1)
    params = jax.jit(lambda: unboxed(init_parameters(build_model(config.model), batch, seed)))()
    about = {"config.json": c.to_dict(config), "labels.json": {}}
    directories.write(folder, flatten_dict(params, sep="/"), UNTRAINED, about)
    tokenizer.save(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The run, six pictures, three recordings of which one fits into no row, a table, and files that cannot be used."""
    home = tmp_path_factory.mktemp("search")
    write_run(home / "run")
    files = home / "files"
    files.mkdir()
    for number in range(6):
        pixels = np.kron(DRAW.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(files / f"picture{number}.png")
    for number, seconds in enumerate((0.4, 0.7, 2.0)):
        soundfile.write(files / f"sound{number}.wav", DRAW.uniform(-0.5, 0.5, int(seconds * RATE)), RATE)
    (files / "broken.png").write_bytes((files / "picture0.png").read_bytes()[:60])
    (home / "texts.jsonl").write_text("".join(json.dumps({"text": words}) + "\n" for words in WORDS))
    return home


@pytest.fixture(scope="module")
def run(home):
    return mmjax.open(home / "run")


@pytest.fixture(scope="module")
def index(home, run):
    """An index of all files."""
    assert run.index([str(home / "files")], home / "index") == {"items": 10, "errors": 1}
    return mmjax.open_index(home / "index")


def test_a_search_ranks_all_items_by_the_vectors_of_the_task_that_joins_them_with_the_query(home, run, index):
    """As if each item were embedded alone; a text is compared with pictures, not with recordings."""
    query = run.embed(text="a red circle", task="seen")["text"]
    pictures = [str(home / "files" / f"picture{number}.png") for number in range(6)]
    scores = {name: float(query @ run.embed(image=name, task="seen")["image"]) for name in pictures}
    found = index.search(text="a red circle")
    assert [one.name for one in found] == sorted(pictures, key=lambda name: -scores[name])
    assert [one.score for one in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
    assert {(one.input, one.task) for one in found} == {("image", "seen")}
    assert [one.name for one in index.search(text="a red circle", count=2)] == [one.name for one in found][:2]


def test_a_picture_finds_itself_and_the_recordings_that_are_like_it(home, run, index):
    picture = str(home / "files" / "picture3.png")
    found = index.search(image=picture, count=2)
    by_input = {name: [one for one in found if one.input == name] for name in ("image", "speech")}
    assert by_input["image"][0].name == picture and by_input["image"][0].score == pytest.approx(1, abs=1e-5)
    query = run.embed(image=picture, task="heard")["image"]
    sounds = [str(home / "files" / f"sound{number}.wav") for number in range(3)]
    best = max(sounds, key=lambda name: query @ run.embed(speech=name, task="heard")["speech"])
    assert by_input["speech"][0].name == best and len(found) == 4


def test_texts_of_a_table_are_found_by_a_picture(home, run):
    run.index([], home / "texts", str(home / "texts.jsonl"))
    index = mmjax.open_index(home / "texts")
    found = index.search(image=str(home / "files" / "picture0.png"))
    assert sorted(one.content for one in found) == sorted(WORDS) and found[0].input == "text"
    with pytest.raises(
        UserError,
        match="no task compares speech with text, .*: seen compares text and image; heard compares speech and image",
    ):
        index.search(speech=str(home / "files" / "sound0.wav"))


def test_the_task_that_is_named_first_compares_items_with_a_query_of_their_own_kind():
    embeds = {"seen": ("text", "image"), "heard": ("speech", "image")}
    tables = [(task, name) for task in sorted(embeds) for name in embeds[task]]
    assert joined(embeds, tables, "image") == [("seen", "text"), ("seen", "image"), ("heard", "speech")]
    assert joined(embeds, [("heard", "image"), ("seen", "image")], "speech") == [("heard", "image")]
    assert joined(embeds, tables, "video") == []


@pytest.mark.slow
def test_an_interrupted_index_is_continued_and_equals_one_that_was_not(home, run, index, monkeypatch):
    """It was killed after it had written some vectors, but not all lines of their items."""
    from mmjax.evaluate import embeddings

    monkeypatch.setattr(embeddings, "WINDOW", 3)
    broken, calls = home / "interrupted", []
    write = embedded.EmbeddedWriter.write

    def killed(self, items):
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(self, items)

    monkeypatch.setattr(embedded.EmbeddedWriter, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        run.index([str(home / "files")], broken)
    with pytest.raises(UserError, match="is not complete; continue it: mmjax index"):
        mmjax.open_index(broken)
    lines = (broken / "items.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 6
    (broken / "items.jsonl").write_text("".join(lines[:5]) + lines[5][:10])
    monkeypatch.setattr(embedded.EmbeddedWriter, "write", write)
    assert run.index([str(home / "files")], broken) == {"items": 10, "errors": 1}
    for one in sorted((home / "index").iterdir()):
        if one.suffix == ".npy":
            np.testing.assert_allclose(np.load(broken / one.name), np.load(one), atol=1e-6)
        else:
            assert (broken / one.name).read_bytes() == one.read_bytes()


def test_an_index_of_another_run_or_of_other_items_is_refused(home, index, tmp_path):
    other = mmjax.open(write_run(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"is of another run \(.*run, step 0\)"):
        other.index([str(home / "files")], home / "index")
    own = mmjax.open(home / "run")
    with pytest.raises(UserError, match="is an index of 10 items, not of these 1"):
        own.index([str(home / "files" / "picture0.png")], home / "index")
    moved = tmp_path / "files"
    shutil.copytree(home / "files", moved)
    with pytest.raises(UserError, match="is an index of other items"):
        own.index([str(moved)], home / "index")
    assert len(mmjax.open_index(home / "index")) == 10, "an index that is refused stays complete"
    with pytest.raises(UserError, match="holds other files"):
        own.index([str(home / "files")], home / "files")


@pytest.mark.slow
def test_a_run_that_was_moved_or_trained_further_is_noticed(home, index, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    mmjax.open(tmp_path / "run").index([str(home / "files" / "picture0.png")], tmp_path / "index")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is gone; if it was moved, repeat the command"):
        mmjax.open_index(tmp_path / "index").search(text="red")
    again = mmjax.open(tmp_path / "moved")
    assert again.index([str(home / "files" / "picture0.png")], tmp_path / "index") == {"items": 1, "errors": 0}
    assert mmjax.open_index(tmp_path / "index").search(text="red")[0].name.endswith("picture0.png")
    write_run(tmp_path / "another", seed=1)
    shutil.rmtree(tmp_path / "moved")
    (tmp_path / "another").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="has other parameters than the run that made the index"):
        mmjax.open_index(tmp_path / "index").search(text="red")


@pytest.mark.slow
def test_an_index_of_a_run_in_a_bucket_names_the_bucket(home, tmp_path, monkeypatch):
    from mmjax.train import mirror

    fsspec.filesystem("memory").put(str(home / "run"), "/searched/run", recursive=True)
    monkeypatch.setattr(mirror, "data_directory", lambda *_: tmp_path / "here")
    picture = str(home / "files" / "picture0.png")
    mmjax.open("memory://searched/run").index([picture], tmp_path / "index")
    shutil.rmtree(tmp_path / "here")  # as on another machine
    index = mmjax.open_index(tmp_path / "index")
    assert index.search(text="red")[0].name == picture and index.run.place == "memory://searched/run"


def test_the_largest_products_do_not_depend_on_the_parts_that_are_read(monkeypatch):
    vectors, query = DRAW.integers(-2, 3, (500, 4)).astype(np.float32), np.array([1, 2, 0, -1], np.float32)
    wanted = np.argsort(-(vectors @ query), kind="stable")[:40]  # many are equal
    for at_once in (4, 64, 4 * 40, 10_000):
        monkeypatch.setattr(embedded, "AT_ONCE", at_once)
        scores, rows = embedded.largest_products(vectors, query, 40)
        np.testing.assert_array_equal(rows, wanted)
        np.testing.assert_array_equal(scores, (vectors @ query)[wanted])
    assert len(embedded.largest_products(vectors[:3], query, 40)[1]) == 3


def test_vectors_that_are_no_numbers_come_last_and_hide_no_other():
    vectors = np.eye(6, dtype=np.float32)
    vectors[[1, 2, 3]] = np.nan
    for count in (2, 3, 6):
        scores, rows = embedded.largest_products(vectors, np.arange(6, dtype=np.float32), count)
        assert rows.tolist() == [5, 4, 0, 1, 2, 3][:count] and scores[:2].tolist() == [5.0, 4.0]


def write_index(folder, stamps="000000"):
    """An index of six items with the vectors of the axes, by its writer."""
    with embedded.EmbeddedWriter(folder, IDENTITY, NAMES, stamps) as writer:
        first = len(writer.done)
        items = [({"name": NAMES[at]}, {("seen", "image"): np.eye(6)[at]}) for at in range(first, 6)]
        writer.write(items)
        writer.finish()
    return first


def test_only_one_process_at_a_time_writes_an_index(tmp_path):
    refused = pytest.raises(
        UserError, match="another process writes the index .*; wait for it, or name another directory"
    )
    with embedded.EmbeddedWriter(tmp_path, IDENTITY, NAMES, "000000"), refused:
        embedded.EmbeddedWriter(tmp_path, IDENTITY, NAMES, "000000")
    assert write_index(tmp_path) == 0, "it is unlocked after an error"
    assert embedded.Embedded(tmp_path).nearest(("seen", "image"), np.eye(6)[4], 1) == [(1.0, 4)]


def test_an_index_with_more_lines_than_items_is_damaged(tmp_path):
    write_index(tmp_path)
    items = tmp_path / "items.jsonl"
    items.write_text(items.read_text() + items.read_text())
    for opened in (embedded.Embedded, write_index):
        with pytest.raises(
            UserError, match="is damaged .items.jsonl has 12 lines of 6 items.; delete it, and make it again"
        ):
            opened(tmp_path)


def test_an_index_is_written_again_from_the_first_item_that_has_changed(tmp_path, capsys):
    assert write_index(tmp_path) == 0 and write_index(tmp_path) == 6
    assert not capsys.readouterr().err
    assert write_index(tmp_path, "000110") == 3
    assert "picture3.png has changed since it was indexed; it and the 2 items that follow" in capsys.readouterr().err
    assert embedded.Embedded(tmp_path).nearest(("seen", "image"), np.arange(6), 6) == [
        (float(at), at) for at in range(5, -1, -1)
    ]


def test_the_stamp_of_an_example_is_that_of_its_texts_and_files(home, run, tmp_path):
    def stamps(*places, manifest=None):
        source = run.examples([str(place) for place in places], manifest and str(manifest))
        return [source.stamp(number) for number in range(len(source))]

    shutil.copytree(home / "files", tmp_path / "files")
    picture, table = tmp_path / "files" / "picture0.png", tmp_path / "list.jsonl"
    rows = [{"image": "files/picture0.png"}, {"image": "files/picture1.png"}, {"text": "a red circle"}]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files, listed = stamps(tmp_path / "files"), stamps(manifest=table)
    assert files == stamps(tmp_path / "files") and len(set(files)) == 10
    shutil.copy(home / "files" / "picture5.png", picture)
    changed = [one != before for one, before in zip(stamps(tmp_path / "files"), files, strict=True)]
    assert changed == [place.name == "picture0.png" for place in sorted((tmp_path / "files").iterdir())]
    rows[2]["text"] = "a blue circle"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one != before for one, before in zip(stamps(manifest=table), listed, strict=True)] == [True, False, True]


def test_a_repeated_command_finds_a_picture_as_it_is_now(home, run, tmp_path):
    picture = tmp_path / "picture.png"
    for original in ("picture0.png", "broken.png", "picture1.png"):
        shutil.copy(home / "files" / original, picture)
        counts = run.index([str(picture)], tmp_path / "index")
        assert counts == {"items": 1, "errors": int(original == "broken.png")}
    query = run.embed(image=str(picture), task="seen")["image"]
    ((score, _),) = embedded.Embedded(tmp_path / "index").nearest(("seen", "image"), query, 1)
    assert score == pytest.approx(1, abs=1e-5)


def test_the_commands_write_an_index_and_show_what_a_search_finds(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(home)
    assert main(["index", "run", "-o", str(tmp_path / "index"), "files/picture0.png", "files/picture1.png"]) == 0
    assert "2 items, 0 with an error" in capsys.readouterr().out
    page = tmp_path / "found.html"
    asked = ["search", str(tmp_path / "index"), "--text", "a <blue> square"]
    assert main([*asked, "--page", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "files/picture0.png" in shown and "score" in shown
    assert main([*asked, "--json", "--count", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["input"] == "image" and pathlib.Path(found["content"]).is_absolute()
    written = page.read_text("utf-8")
    assert written.count("data:image/png;base64,") == 2 and "a &lt;blue&gt; square" in written
    for arguments, message in (
        (["search", str(tmp_path / "index")], "give one of --text, --image and --speech"),
        (["search", str(tmp_path), "--text", "red"], "is no index; make one: mmjax index RUN FILES"),
        (["search", str(tmp_path / "index"), "--speech", "files/sound0.wav"], ""),
        (["index", "run", "-o", str(tmp_path / "other")], "give either files, or a manifest"),
        (["index", "run", "files", "-o", str(tmp_path / "other"), "--steps", "3"], "has no argument --steps"),
    ):
        assert main(arguments) == (2 if message else 0)
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_about_using_a_run_works_as_a_user_does_it(home, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "retrieval").symlink_to(home / "run")
    for name, kind in (("pictures", "png"), ("recordings", "wav")):
        (tmp_path / name).mkdir()
        for file in sorted((home / "files").glob(f"[ps]*0.{kind}")):
            shutil.copy(file, tmp_path / name)
    shutil.copy(home / "files" / "picture0.png", tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text("utf-8").split("## Search\n")[1].split("\n## ")[0]
    commands, code = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    for line in commands.splitlines():
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
    shown = capsys.readouterr().out
    assert "pictures/picture0.png" in shown and "recordings/sound0.wav" in shown and "1.000" in shown
    assert "audio/ogg" in (tmp_path / "found.html").read_text("utf-8")
    exec(code, {})
    assert "image pictures/picture0.png" in capsys.readouterr().out


def test_a_run_that_compares_nothing_makes_no_index(tmp_path):
    from untrained import causal, untrained

    run = mmjax.open(untrained(tmp_path / "run", causal(), {"transcript": c.CTC(reads="speech", outputs=60)}))
    with pytest.raises(UserError, match="has no task that compares inputs; train one with a Contrast task"):
        run.index(["a.wav"], tmp_path / "index")


def test_one_of_several_tasks_can_be_chosen_for_an_embedding(home, run):
    picture = str(home / "files" / "picture0.png")
    assert run.embed(image=picture)["image"].shape == (8,) and run.embed(image=picture, task="heard")[
        "image"
    ].shape == (12,)
    for task, message in (("herd", "did you mean"), ("heard", "does not compare text; it compares speech, image")):
        with pytest.raises(UserError, match=re.escape(message)):
            run.embed(text="red", task=task)
