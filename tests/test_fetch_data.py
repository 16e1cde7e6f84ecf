"""docs/fetch_data.py, on small packages of the same form: what becomes a label, and that no split repeats another."""

import csv
import gzip
import io
import json
import pathlib
import struct
import sys
import tarfile

import numpy as np
import pytest

from mmjax import config as c
from mmjax.data import spoken_easy_vqa

SILENCE = np.zeros(1600, np.float32)
DOCS = str(pathlib.Path(__file__).parent.parent / "docs")


@pytest.fixture
def fetch_data(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    import fetch_data

    yield fetch_data
    for name in ("fetch_data", "fetch_pretrained"):
        sys.modules.pop(name, None)


def rows(folder):
    """The rows of all tables in a folder, each with its split."""
    found = []
    for table in sorted(folder.glob("*.tsv")):
        with table.open(encoding="utf-8") as lines:
            found += [
                row | {"split": table.stem} for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            ]
    return found


def test_the_font_of_a_line_says_which_fish_speaks(fetch_data, monkeypatch, tmp_path):
    game = tmp_path / "usr/share/games/fillets-ng"

    def level(name, language, **lines):
        for folder in (game / "script" / name, game / "sound" / name / language):
            folder.mkdir(parents=True, exist_ok=True)
        text = "".join(
            f'dialogId("{i}", "{font}", "{i}?")\ndialogStr("{said}")\n\n' for i, (font, said) in lines.items()
        )
        (game / "script" / name / f"dialogs_{language}.lua").write_text(text, encoding="utf-8")
        for line in lines:
            (game / "sound" / name / language / f"{line}.ogg").write_bytes(line.encode())

    level("cave", "cs", a=("font_small", "Ryba?"), b=("font_big", 'To je \\"kámen\\".'), c=("font_parrot", "Ne"))
    level("cave", "nl", a=("font_small", "Vis?"))
    for number in range(30):
        level(f"level{number}", "cs", **{f"x{number}": ("font_big", f"ryba {number // 2}")})
    (game / "sound/cave/cs/noise.ogg").write_bytes(b"not in the dialogues")
    monkeypatch.setattr(fetch_data, "debian", lambda *names: tmp_path)
    fetch_data.fish(tmp_path / "out")
    found = rows(tmp_path / "out")
    cave = {row["speech"]: row for row in found if row["level"] == "cave"}
    assert {file: row["speaker"] for file, row in cave.items()} == {
        "cave/cs/a.ogg": "cs small",
        "cave/cs/b.ogg": "cs big",
        "cave/nl/a.ogg": "nl small",
    }
    row = cave["cave/cs/b.ogg"]
    assert (row["transcript"], row["target"], row["language"]) == ('To je "kámen".', "b?", "cs")
    assert all((tmp_path / "out" / file).is_file() for file in cave)
    for key in ("level", "transcript"):
        assert all(len({row["split"] for row in found if row[key] == one[key]}) == 1 for one in found)
    assert len({row["split"] for row in found}) > 1


def test_the_mean_rating_of_people_gives_the_sentiment(fetch_data, monkeypatch, tmp_path):
    tables = {
        "tweets": "1\t2.7261\tlove &amp;amp; peace\n2\t-0.5\tfine\n",
        "movieReviewSnippets": "1\t-0.6\ttoo tepid\n",
        "amazonReviewSnippets": "".join(f"{n // 3}_{n % 3}\t0.51\tgood {n}\n" for n in range(90)),
        "nytEditorialSnippets": "\ufeff1_1\t0\tsame\n2_1\t0.1\tSame!\n",
    }
    archive = tmp_path / "additional_resources/hutto_ICWSM_2014.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in tables.items():
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setattr(fetch_data, "sdist", lambda requirement: tmp_path)
    fetch_data.sentiment(tmp_path / "out")
    found = rows(tmp_path / "out")
    said = {row["text"]: (row["sentiment"], row["rating"], row["domain"]) for row in found}
    assert said["love & peace"] == ("positive", "2.726", "tweet") and said["fine"][0] == "neutral"
    assert said["too tepid"][::2] == ("negative", "film") and said["good 0"][0] == "positive"
    split = {row["text"]: row["split"] for row in found}
    assert split["same"] == split["Same!"]
    assert all(split[f"good {n}"] == split[f"good {n // 3 * 3}"] for n in range(90)) and len({*split.values()}) == 3


def test_pictures_of_clothes_have_the_name_of_the_article(fetch_data, monkeypatch, tmp_path):
    folder = tmp_path / "usr/share/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        images = struct.pack(">4i", 2051, 2, 28, 28) + bytes(784) + bytes([255] * 784)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">2i", 2049, 2) + bytes([9, 0]))
        )
    monkeypatch.setattr(fetch_data, "debian", lambda *names: tmp_path)
    fetch_data.clothes(tmp_path / "out")
    source = c.TarShards(splits={"test": str(tmp_path / "out/test.tar")})
    opened = c.Data(source=source, rows={"image": 98, "examples": 2}, subsets={"image": 1.0}).open("test", tmp_path)
    assert [opened.labels["answer"].names[opened[n].labels["answer"]] for n in (0, 1)] == ["ankle boot", "T-shirt"]
    assert opened.sizes["image"].tolist() == [[28, 28]] * 2


def test_each_recording_is_kept_once_with_its_keyword(fetch_data, monkeypatch, tmp_path):
    asked = [
        ("is there a red shape?", "m1"),
        ("is there a red shape?", "m1"),
        ("what shape is in the image?", "m1"),
        ("is no circle present?", "f2"),
    ]

    class Records:
        def __init__(self, directory, split):
            pass

        def __len__(self):
            return len(asked)

        def stored(self, number):
            question, voice = asked[number]
            return {"question": question, "voice": voice.encode(), "speech": question.encode()}

    monkeypatch.setattr(spoken_easy_vqa, "SpokenEasyVQARecords", Records)
    fetch_data.keywords(tmp_path)
    found = [row for row in rows(tmp_path) if row["split"] == "test"]
    assert [(row["keyword"], row["voice"]) for row in found] == [("red", "m1"), ("none", "m1"), ("circle", "f2")]
    assert (tmp_path / found[2]["speech"]).read_bytes() == b"is no circle present?"


def test_sentences_of_wordnet_are_spoken_once(fetch_data, monkeypatch, tmp_path):
    pytest.importorskip("easy_vqa")
    folder = tmp_path / "usr/share/wordnet"
    folder.mkdir(parents=True)
    examples = [f"a sentence that counts {'x' * (number % 9 + 1)} {chr(97 + number // 9)}" for number in range(90)]
    glosses = "".join(f'00001740 29 v 01 breathe 0 | draw air; "{one}"; "too short"; "{one}"\n' for one in examples)
    for kind in ("adj", "adv", "noun", "verb"):
        (folder / f"data.{kind}").write_text(glosses if kind == "verb" else "", encoding="utf-8")
    said = []
    monkeypatch.setattr("mmjax.data.speech_synthesis.synthesise", lambda text, voice: said.append(text) or SILENCE)
    monkeypatch.setattr(fetch_data, "debian", lambda *names: tmp_path)
    fetch_data.sentences(tmp_path / "out")
    found = rows(tmp_path / "out")
    assert sorted(said) == sorted(examples) and {row["transcript"].lower() for row in found} == set(examples)
    assert all((tmp_path / "out" / row["speech"]).stat().st_size for row in found)
    voices = [{row["voice"] for row in found if row["split"] == split} for split in ("train", "test")]
    assert voices[0] and voices[1] and not voices[0] & voices[1]


def test_what_is_asked_about_a_picture_describes_it(fetch_data, monkeypatch, tmp_path):
    asked = [
        ["what color is the circle?", "red", 1],
        ["is there not a blue shape?", "yes", 2],  # so it is not blue
        ["is there a teal shape?", "yes", 2],
        ["is no rectangle present?", "no", 2],
        ["what shape is present?", "triangle", 3],  # no question tells its colour
    ]
    for split in ("train", "test"):
        (tmp_path / "easy_vqa/data" / split / "images").mkdir(parents=True)
        (tmp_path / "easy_vqa/data" / split / "questions.json").write_text(json.dumps(asked))
    monkeypatch.setattr(fetch_data, "wheels", lambda *names: tmp_path)
    fetch_data.shapes(tmp_path / "out")
    found = {row["image"]: row["target"] for row in rows(tmp_path / "out") if row["split"] == "train"}
    assert found == {"train/1.png": "a red circle", "train/2.png": "a teal rectangle"}
