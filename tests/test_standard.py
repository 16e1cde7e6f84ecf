"""Every standard config, made small, trains on a few made-up examples: the features and splits of TFDS, or the list of its docstring."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
from PIL import Image

from mmjax import config as c
from mmjax.train.loop import train

FOLDER = pathlib.Path("configs/standard").absolute()
CONFIGS = sorted(FOLDER.glob("*.py")) + [FOLDER.parent / "librispeech_fastconformer_l.py"]
# The splits that TFDS's builders name in `_split_generators`.
USUAL = ("train", "validation", "test")
LIBRISPEECH = (
    "train_clean100",
    "train_clean360",
    "train_other500",
    "dev_clean",
    "dev_other",
    "test_clean",
    "test_other",
)
SPLITS = {
    "c4/en": USUAL[:2],
    "cifar10": ("train", "test"),
    "clevr": USUAL,
    "cnn_dailymail": USUAL,
    "coco_captions/2014": ("train", "val", "test", "restval"),
    "common_voice/de": ("train", "test", "validation", "dev"),
    "common_voice/fr": ("train", "test", "validation", "dev"),
    "crema_d": USUAL,
    "imagenet2012": USUAL,
    "imdb_reviews": ("train", "test", "unsupervised"),
    "librispeech/default": LIBRISPEECH,
    "lm1b": ("train", "test"),
    "samsum": USUAL,
    "savee": USUAL,
    "speech_commands": USUAL,
    **{f"xtreme_s/fleurs.{language}": USUAL for language in ("de_de", "en_us", "es_419", "fr_fr", "it_it")},
}
# Of configs that are much like another, one is enough where time is short.
LONG = (
    "coco_retrieval",
    "common_voice common_voice/fr",
    "crema_d savee",
    "cnn_dailymail samsum",
    "imagenet2012",
    "lm1b",
)


def commands():
    """The commands of all docstrings: a config, and what is changed of it."""
    for path in CONFIGS:
        for line in re.findall(r"^    mmjax train (\S+\.py)(.*)$", path.read_text(), re.MULTILINE):
            flags = line[1].partition("#")[0].split()
            assert pathlib.Path(line[0]).absolute() == path
            name = " ".join([path.stem, *flags[1:2]]) if flags else path.stem
            yield pytest.param(path, flags, id=name, marks=pytest.mark.long if name in LONG else pytest.mark.slow)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All that TFDS would prepare."""
    home = tmp_path_factory.mktemp("tfds")
    program = pathlib.Path(__file__).with_name("tfds_builders.py")
    wanted = [f"{name}={','.join(splits)}" for name, splits in SPLITS.items()]
    done = subprocess.run([sys.executable, program, home, *wanted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return home


def make(file, number):
    """A recording or picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(number)
    if file.suffix in (".jpg", ".png"):
        Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).save(file)
    else:
        soundfile.write(file, 0.1 * draw.standard_normal(16_000), 16_000)


def write_list(file, example):
    """A list with the lines that the config's docstring shows, and files of these names."""
    rows = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", example, re.MULTILINE)]
    assert rows, "the docstring shows no line of the list"
    for number, row in enumerate(rows):
        for key in row.keys() & {"speech", "image"}:
            make(file.parent / row[key], number)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))


def write_minds14(file):
    """A table with the columns of Hugging Face's MINDS-14."""
    file.parent.mkdir(parents=True)
    make(file.with_suffix(".wav"), 0)
    sound = {"bytes": file.with_suffix(".wav").read_bytes(), "path": "a.wav"}
    names = {"intent_class": ["abroad", "address", "app_error"], "lang_id": ["cs-CZ", "de-DE"]}
    rows = [
        {
            "path": "a.wav",
            "audio": sound,
            "transcription": f"hallo {number}",
            "english_transcription": f"hello {number}",
            "intent_class": number % 3,
            "lang_id": number % 2,
        }
        for number in range(20)
    ]
    features = {name: {"_type": "ClassLabel", "names": classes} for name, classes in names.items()}
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, file)


def small(config, directory):
    """Two steps of the config with few features, and a tokenizer that a few texts can train."""
    tokenizer = config.data.tokenizer
    if tokenizer:
        special = tokenizer.special
        tokenizer = dataclasses.replace(tokenizer, vocabulary=308 + len(special), byte_fallback=True)
    source = config.data.source
    if getattr(source, "sample_rate", None):  # the made-up recordings have few samples
        source = dataclasses.replace(source, sample_rate=16_000)
    data = dataclasses.replace(config.data, source=source, tokenizer=tokenizer, directory=str(directory))
    return dataclasses.replace(c.smoke(dataclasses.replace(config, data=data), width=16), steps=2)


@pytest.mark.parametrize("path, flags", list(commands()))
def test_a_standard_config_trains(path, flags, sets, tmp_path, monkeypatch):
    config = c.override(c.load(path), flags)
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    monkeypatch.chdir(tmp_path)
    source = getattr(config.data.source, "source", config.data.source)
    if isinstance(source, c.Manifest):
        for file in map(pathlib.Path, source.splits.values()):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_list(file, path.read_text())
    if isinstance(source, c.Parquet):
        write_minds14(tmp_path / "data" / "minds14" / "a.parquet")
    results = train(small(config, tmp_path), tmp_path / "run")
    assert set(results) == set(config.measured)
    for metrics in results.values():
        assert metrics["examples"] > metrics.get("lacking", 0) + metrics.get("skipped", 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [one["loss"] for one in lines if one["kind"] == "train"]
    assert len(losses) == 2 and all(0 < loss < 1e3 for loss in losses)


def test_the_page_of_tasks_lists_every_standard_config():
    page = (FOLDER.parent.parent / "docs/tasks.md").read_text()
    assert not [path.stem for path in CONFIGS if f"`{path.stem}`" not in page]
