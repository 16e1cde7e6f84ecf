"""The builder of Tux Paint's stamps, on a package of the same form made here."""

import dataclasses
import io
import re

import numpy as np
import pytest
import soundfile
from conftest import tiny
from debs import deb
from PIL import Image

from mmjax import config as c
from mmjax.data.image import open_image
from mmjax.data.splitting import splits_of
from mmjax.data.tuxpaint_stamps import STAMPS, TuxPaintStampsRecords, archive_of, keys_of, read_stamps
from mmjax.errors import UserError
from mmjax.train.build import build_source


def ogg(seconds):
    buffer = io.BytesIO()
    soundfile.write(
        buffer, 0.1 * np.sin(np.arange(round(seconds * 44_100)) / 20), 44_100, format="OGG", subtype="VORBIS"
    )
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def package(path, stamps=40):
    """A .deb of stamps `things/N`, of which each two in a row share a French name."""
    files = {}
    for number in range(stamps):
        name = f"things/{number:02}"
        french = f"fr.utf8=Chose {number // 2}."
        files[f"{name}.txt"] = f"Thing {number}.\n{french}\nde.utf8=Ding {number}.\nbroken line\n".encode()
        if number % 4:
            files[f"{name}.png"] = png()
        for language in ("", "_fr", "_lt"):
            files[f"{name}_desc{language}.ogg"] = ogg(0.3 + 0.01 * number)
        files[f"{name}.ogg"] = ogg(0.2)  # a sound effect
    return deb(path, {f"{STAMPS}/{name}": data for name, data in files.items()} | {"etc/passwd": b"x"})


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    home = tmp_path_factory.mktemp("tuxpaint")
    package(home / "stamps.deb")
    return home


def test_stamps_are_read_from_inside_the_package(stamps):
    found = read_stamps(archive_of(stamps, str(stamps / "stamps.deb")))
    assert len(found) == 40 and found[7].name == "things/07"
    assert found[7].texts == {"en": "Thing 7.", "fr": "Chose 3.", "de": "Ding 7."}
    assert sorted(found[7].spoken) == ["en", "fr", "lt"] and found[7].image is not None and found[8].image is None
    assert open_image(found[7].image.read()).getpixel((3, 3)) == (255, 255, 255)  # paper shows through


def test_no_phrase_of_a_split_is_in_another(stamps):
    found = read_stamps(archive_of(stamps, None))
    chosen = splits_of({stamp.name: keys_of(stamp) for stamp in found})
    for number in range(0, 40, 2):  # the two that share a French name
        assert len({chosen[f"things/{n:02}"] for n in range(number, number + 2)}) == 1
    phrases = {}
    for stamp in found:
        for language in ("en", "fr"):
            phrases.setdefault((language, stamp.texts[language]), set()).add(chosen[stamp.name])
    assert all(len(splits) == 1 for splits in phrases.values())
    assert len(set(chosen.values())) > 1


def test_each_recording_is_an_example(stamps):
    data = dataclasses.replace(
        tiny().data,
        source=c.TuxPaintStamps(languages=("fr", "lt")),
        directory=str(stamps),
        tokenizer=c.SentencePiece(vocabulary=80, byte_fallback=False),
    )
    splits = {split: build_source(data, split) for split in ("train", "test", "validation")}
    assert sum(map(len, splits.values())) == 80
    train = splits["train"]
    assert train.labels["answer"].names == ("fr", "lt")
    for number in range(len(train)):
        example = train[number]
        language = train.labels["answer"].names[example.labels.get("answer")]
        assert re.fullmatch(r"Thing \d+\.", example.labels.get("target"))
        assert (example.labels.get("transcript") is None) == (language == "lt") and example.inputs.get(
            "text"
        ) == example.labels.get("transcript")
        assert len(example.inputs["speech"]()) == train.sizes["speech"][number]
    written = TuxPaintStampsRecords(stamps, "train", written=True)
    silent = [written[i] for i in range(len(written)) if written[i].inputs.get("speech") is None]
    assert {record.tags.get("language") for record in silent} == {"de"} and all(
        r.labels.get("transcript") is None and r.inputs.get("text") for r in silent
    )
    with pytest.raises(UserError, match="has no recordings in 'xx'.*en, fr, lt"):
        TuxPaintStampsRecords(stamps, "train", languages=("xx",))


def test_what_is_no_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "odd.deb").write_bytes(b"odd")
    with pytest.raises(UserError, match="odd.deb is not a .deb file"):
        TuxPaintStampsRecords(tmp_path, "train", package=str(tmp_path / "odd.deb"))
    with pytest.raises(UserError, match="No such file"):
        TuxPaintStampsRecords(tmp_path, "train", package=str(tmp_path / "missing.deb"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="no apt-get to fetch tuxpaint-stamps-default; download the .deb"):
        TuxPaintStampsRecords(tmp_path, "train")
