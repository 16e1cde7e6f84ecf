"""docs/data.md, step by step, on recordings made for it."""

import itertools
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmjax import cli
from mmjax import config as c
from mmjax.data.tfds_fields import READY, ready
from mmjax.train.build import build_layout, build_sampler, build_source, open_data
from mmjax.train.validate import check_config

PAGE = pathlib.Path("docs/data.md").read_text()


def code(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The page's list, repeated, with recordings that have nothing to say."""
    home = tmp_path_factory.mktemp("own")
    (home / "clips").mkdir()
    draw = np.random.default_rng(0)
    for name, seconds in (("0", 0.8), ("1", 1.1), ("long", 2.0)):
        soundfile.write(home / "clips" / f"{name}.wav", 0.1 * draw.standard_normal(round(seconds * 22_050)), 22_050)
    (lines,) = code("json")
    (home / "train.jsonl").write_text(lines)
    (home / "test.jsonl").write_text(lines.splitlines()[0])
    (home / "colours.py").write_text(code("python")[0])
    return home


def run(command):
    assert command.startswith("mmjax ")
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0


@pytest.mark.slow
def test_the_page_works_from_beginning_to_end(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MMJAX_DATA", str(home / "cache"))
    (train,), (inspect,), (build, train_on_shards), _ = (block.strip().splitlines() for block in code("bash"))
    run(train)
    capsys.readouterr()
    run(inspect)
    assert "3 examples, 0.00 hours of speech" in (printed := capsys.readouterr().out) and "padding of speech" in printed
    shown = (home / "colours.html").read_text()
    assert shown.count("<audio") == 3 and "red square" in shown and shown.count("<svg") == 3
    assert (home / "cache" / "indices").is_dir()
    run(build)
    run(train_on_shards)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (home / "runs" / name / "metrics.jsonl").read_text().splitlines()
            if '"train"' in line
        ]
        for name in ("colours", "shards")
    ]
    assert losses[0] == losses[1] and len(losses[0]) >= 2  # 16 bits survive FLAC unchanged
    capsys.readouterr()
    assert cli.main(["eval", "runs/shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subsets"]["speech"]["examples"] == 1


@pytest.fixture
def animals(tmp_path, monkeypatch):
    """The page's config of images, and images of noise in its folders."""
    draw = np.random.default_rng(0)
    for split, kind, number in itertools.product(("train", "test"), ("cat", "dog"), range(2)):
        folder = tmp_path / "animals" / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40 + number, 50, 3), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "animals.py").write_text(code("python")[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "cache"))
    return tmp_path / "animals.py"


def test_the_config_of_images_fits_its_folders(animals):
    config = c.load(animals)
    check_config(config)
    config, source = open_data(config)
    assert source.labels["answer"].names == ("cat", "dog") and len(source) == 4
    layout = build_layout(config, None)
    sampler = build_sampler(config, layout, source)
    assert len(sampler.rows(0)) == 2 and not sampler.too_long and not sampler.never_shown


@pytest.mark.slow
def test_the_config_of_images_trains(animals, capsys):
    run("mmjax train animals.py --run-dir runs/animals")
    capsys.readouterr()
    run("mmjax eval runs/animals --json")
    assert json.loads(capsys.readouterr().out)["subsets"]["image"]["examples"] == 4


def test_the_data_sets_of_the_page_are_described_right():
    """They cannot be downloaded for a test; tests/test_tfds.py reads a few examples of each."""
    shown = [eval(text, {"c": c}) for text in re.findall(r"`(c\.TFDS\(.*?\))`", PAGE)]
    assert len(shown) == 2 and all(isinstance(one, c.TFDS) and {"train", "test"} == set(one.splits) for one in shown)
    assert ready(shown[0].name) is not None and shown[1].fields.keys() == {"image", "target"}
    assert f"some {['thirty', 'forty', 'fifty'][round(len(READY) / 10) - 3]}" in PAGE


def test_the_labels_and_inputs_of_the_page_are_parts():
    room = {"c": c}
    tasks, inputs, *_ = code("py")
    exec(tasks + inputs, room)
    assert {name: one.labels() for name, one in room["tasks"].items()} == {
        "emotion": {"emotion": "class"},
        "age": {"age": "numbers"},
        "topics": {"topics": "classes"},
    }
    assert all(isinstance(one, c.Input) for one in room["inputs"].values())
    assert c.Data(source=c.Shards(directory="x"), rows={}, subsets={}, inputs=room["inputs"]).fields().labels["answer"]


def test_the_mixture_of_the_page_is_one(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MMJAX_DATA", str(home / "cache"))
    if not (home / "shards").exists():  # which the page has built, where its test came first
        run(code("bash")[2].splitlines()[0])
    room = {"c": c}
    exec(code("python")[2], room)
    data = c.load("colours.py").data
    mixed = build_source(c.Data(**{**vars(data), "source": room["source"]}), "train")
    assert mixed.names == ["mine", "lists"] and mixed.lengths == [3, 3]
    counts = mixed.proportions.before(1000)
    assert np.abs(counts - [700, 300]).max() <= 3


def test_the_tokenizer_of_the_page_puts_a_language_before_a_transcript(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setenv("MMJAX_DATA", str(home / "cache"))
    run(code("bash")[3].strip())
    assert capsys.readouterr().out.startswith("64 pieces, ")
    room = {"c": c}
    exec(code("python")[3], room)
    data = c.load("colours.py").data
    found = build_source(
        c.Data(**{**vars(data), "tokenizer": room["tokenizer"], "prefixes": room["prefixes"]}), "train"
    )
    written = [
        found.tokenizer.decode(
            [*found[i].prefixes["transcript"], *found.tokenizer.encode(found[i].labels.get("transcript"))], special=True
        )
        for i in range(3)
    ]
    assert written == ["red circle", "<en>blue square", "red square"]
