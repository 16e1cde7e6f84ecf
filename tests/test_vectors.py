"""Streams of vectors: the page about them is a program that trains, and what does not fit is refused."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from mmjax import check, cli
from mmjax import config as c
from mmjax.data.example import Example
from mmjax.data.layout import Layout
from mmjax.data.packing import Packer
from mmjax.errors import UserError
from mmjax.run import Run
from mmjax.train.build import build_source
from mmjax.train.validate import check_config, check_data

pytestmark = pytest.mark.slow

PAGE = pathlib.Path("docs/fourth-modality.md")


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    """The page's config, and lists like those that it shows, of the drives that its class makes."""
    home = tmp_path_factory.mktemp("drives")
    config, source = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (home / "own.py").write_text(source)
    path = home / "drives.py"
    path.write_text(config.replace("train.jsonl", f"{home}/train.jsonl").replace("test.jsonl", f"{home}/test.jsonl", 1))
    made = {}
    exec(source, made)
    (home / "drives").mkdir()
    for split in ("train", "test"):
        drives = made["Drives"](None, split, 400)
        lines = []
        for number in range(400):
            example, file = drives[number], f"drives/{split}-{number}.npy"
            np.save(home / file, example.inputs["accelerometer"])
            answer = drives.labels["answer"].names[example.labels["answer"]]
            lines.append({"accelerometer": file, "gps": example.inputs["gps"].tolist(), "answer": answer})
        (home / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def trained(drives):
    run = drives.parent / "run"
    assert cli.main(["train", str(drives), "--run-dir", str(run), "--log.tensorboard", "false"]) == 0
    return run


def test_the_page_shows_lines_of_its_list(drives):
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    rows = [json.loads(line) for line in shown.splitlines()]
    assert all(row.keys() == json.loads((drives.parent / "test.jsonl").open().readline()).keys() for row in rows)


def test_both_sensors_together_say_what_neither_says_alone(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # the source is found from anywhere
    assert cli.main(["eval", str(trained), "--json"]) == 0
    subsets = json.loads(capsys.readouterr().out)["subsets"]
    accuracy = {name: metrics["answer/accuracy"] for name, metrics in subsets.items()}
    assert accuracy["accelerometer+gps"] > 0.95
    assert 0.35 < accuracy["accelerometer"] < 0.65 and 0.35 < accuracy["gps"] < 0.65
    assert all(metrics["examples"] == 400 for metrics in subsets.values())


def test_an_example_is_predicted_as_packed(trained, drives, capsys):
    assert cli.main(["predict", str(trained), "--example", "7", "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    example = build_source(c.load(drives).data, "test")[7]
    truth = packed["example"]["answer"]
    inputs = {name: example.input(name) for name in example.inputs}
    alone = Run(trained).predict(**inputs)["answer/probabilities"]
    assert alone == packed["answer/probabilities"] and alone[truth] > 0.8
    halved = Run(trained).predict(accelerometer=inputs["accelerometer"])["answer/probabilities"]
    speed = truth.split(",")[0]
    assert halved[truth] < 0.8 < sum(p for answer, p in halved.items() if answer.startswith(speed))
    with pytest.raises(UserError, match="no encoder for radar"):
        Run(trained).predict(radar=np.ones((3, 2)))


def test_the_invariants_hold(drives):
    with jax.default_matmul_precision("highest"):
        subject = check.Subject(c.load(drives))
        assert check.packing(subject) <= check.TOLERANCES["packing"]
        assert check.emptiness(subject) <= check.TOLERANCES["emptiness"]
        assert check.absence(subject) <= check.TOLERANCES["absence"]


@pytest.mark.parametrize(
    "vectors, message",
    [
        (np.ones((3, 4)), r"the radar of it has the shape \[3, 4\], not \[T, 2\]"),
        (np.ones(3), r"the shape \[3\]"),
        (np.ones((0, 2)), r"the shape \[0, 2\]"),
        (np.full((3, 2), np.nan), "not finite"),
        (np.ones((9, 2)), "has 9 vectors, but the row has room for 8; shorten it or raise data.rows.radar"),
    ],
    ids=["width", "flat", "empty", "nan", "long"],
)
def test_vectors_that_do_not_fit_are_an_error_and_leave_the_row_as_it_was(vectors, message):
    packer = Packer(Layout.of({"radar": 8, "examples": 2}, geometry={"radar": {"width": 2}}), 1)
    with pytest.raises(UserError, match=message):
        packer.add(0, Example({"radar": vectors}), frozenset(["radar"]), name="it")
    assert not any(stream.segments.any() for stream in packer.batch.values())


def test_vectors_are_packed_side_by_side_with_their_time():
    packer = Packer(Layout.of({"radar": 8, "examples": 2}, geometry={"radar": {"width": 2}}), 1)
    for length in (3, 2):
        packer.add(0, Example({"radar": np.full((length, 2), length)}), frozenset(["radar"]))
    radar = packer.batch["radar"]
    assert radar.segments[0].tolist() == [1, 1, 1, 2, 2, 0, 0, 0]
    assert radar.positions[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert radar.features[0, :, 0].tolist() == [3, 3, 3, 2, 2, 0, 0, 0]


def test_sources_and_names_that_cannot_work_are_refused(drives):
    config = c.load(drives)
    assert c.from_json(c.to_json(config)) == config
    own = c.OwnSource(file=str(drives.parent / "own.py"), name="Drives", options={"examples": 8})
    assert len(build_source(dataclasses.replace(config.data, source=own), "train")) == 8
    for change, message in (
        ({"file": "nowhere.py"}, "there is no file nowhere.py"),
        ({"name": "Flights"}, "defines no class Flights"),
        ({"name": "np"}, "defines no class np"),
    ):
        source = dataclasses.replace(own, **change)
        with pytest.raises(UserError, match=message):
            build_source(dataclasses.replace(config.data, source=source), "train")

    def with_encoders(**encoders):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, encoders=encoders))

    with pytest.raises(UserError, match="'text' is reserved and cannot name a stream of vectors"):
        check_config(with_encoders(text=c.Vectors(inputs=2)))
    drawn = build_source(dataclasses.replace(config.data, source=own), "train")
    with pytest.raises(UserError, match="'radar', but the data has only accelerometer, gps"):
        check_data(with_encoders(radar=c.Vectors(inputs=2)), drawn)
    with_options = dataclasses.replace(config, data=dataclasses.replace(config.data, source=own))
    check_config(c.override(with_options, ["--data.source.options.examples", "0"]))  # what options mean is not ours
