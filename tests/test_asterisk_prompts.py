"""Asterisk's prompts, on packages of the same form made here."""

import gzip
import io

import numpy as np
import pytest
import soundfile
from debs import deb

from mmjax.data.asterisk_prompts import (
    LANGUAGES,
    SOUNDS,
    TEXTS,
    AsteriskPrompts,
    AsteriskPromptsRecords,
    keys_of,
    spoken,
)
from mmjax.data.fields import USUAL
from mmjax.data.indexing import measure
from mmjax.errors import UserError

WORDS = [
    "apple",
    "river",
    "candle",
    "mountain",
    "silver",
    "window",
    "garden",
    "thunder",
    "copper",
    "meadow",
    "lantern",
    "harbour",
    "violet",
    "saddle",
]
VOICES = {"en": "en_US_f_A", "es": "es_MX_f_A", "fr": "fr_CA_f_J", "it": "it_IT_m_C", "ru": "ru_RU_f_I"}
ODD = {"tones/beep": "[a beep]", "letters/at": "at [@]", "iax": 'IAX (note: does not say "2")', "empty": ""}


def texts_of(language):
    """Prompts of 60 pairs of words. In French, each two in a row share a sentence."""
    texts = {}
    for number in range(60):
        one, other = WORDS[number % 14], WORDS[number * 5 // 14 % 14]
        said = f"{language} {one} {number * 7919 % 100000} {other}!"
        texts[f"p/{number:02}"] = f"Phrase {number // 2 * 104729}. {said}" if language == "fr" else said
    return texts


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A folder with the packages of all languages."""
    home, buffer = tmp_path_factory.mktemp("asterisk"), io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(8_000) / 20), 8_000, format="WAV")
    for language in LANGUAGES:
        texts = texts_of(language) | (ODD if language == "en" else {})
        listed = "\n".join(["; Prompts", "", *(f"{name}: {text}" for name, text in texts.items())])
        text = gzip.compress(("\ufeff" if language == "it" else "").encode() + listed.encode())
        package = f"asterisk-core-sounds-{language}"
        deb(home / f"{package}_1_all.deb", {f"{TEXTS}/{package}/core-sounds-{language}.txt.gz": text})
        sounds = {f"{SOUNDS}/{VOICES[language]}/{name}.wav": buffer.getvalue() for name in texts}
        deb(home / f"{package}-wav_1_all.deb", sounds)
    return home


def records(prompts, split, **options):
    found = AsteriskPromptsRecords(prompts, split, package=str(prompts), **options)
    return [found[number] for number in range(len(found))]


def test_each_recording_has_its_transcript_and_the_english_text(prompts):
    found = {one.name: one for split in ("train", "validation", "test") for one in records(prompts, split)}
    assert len(found) == 5 * 60 + 1  # and letters/at
    russian = found["p/07 (ru)"]
    assert russian.labels["transcript"] == texts_of("ru")["p/07"] and russian.labels["target"] == texts_of("en")["p/07"]
    assert russian.tags["language"] == "ru" and russian.labels["answer"] == "Russian"
    assert measure(russian, USUAL).sizes["speech"] == ((8_000, 8_000),)
    assert "target" not in found["p/07 (en)"].labels


def test_a_prompt_and_all_that_resemble_it_are_in_one_split_of_all_languages(prompts):
    chosen = {}
    for split in ("train", "validation", "test"):
        for one in records(prompts, split):
            chosen.setdefault(one.name.split()[0], set()).add(split)
    assert all(len(splits) == 1 for splits in chosen.values())
    assert all(chosen[f"p/{n:02}"] == chosen[f"p/{n + 1:02}"] for n in range(0, 60, 2))  # a common French sentence
    assert len({split for splits in chosen.values() for split in splits}) == 3
    only = {one.name for one in records(prompts, "test", languages=("es",))}
    assert only == {one.name for one in records(prompts, "test") if one.tags["language"] == "es"}


def test_texts_that_are_almost_equal_belong_together():
    keys = keys_of({"en": {"a": "Folder eight", "b": "Folder eighty.", "c": "Goodbye"}, "fr": {"c": "Au revoir"}})
    assert keys["a"] & keys["b"] and not keys["a"] & keys["c"]


def test_what_is_said_is_told_from_notes():
    assert spoken("letters/at", ["at [@]"]) == "at"
    assert spoken("x", ["x: ... dos  dias..."]) == "dos dias"
    assert spoken("x", ['Say "yes" or "no"']) == 'Say "yes" or "no"' and spoken("x", ['Say yes."']) == "Say yes."
    for unsure in ("[beep]", "<beep ascending>", "Il [suo] messaggio", "(2 seconds of silence)", "...", "[!]"):
        assert spoken("x", [unsure]) is None
    assert spoken("digits/0", ["cero", "diez"]) is None  # two texts for one recording


def test_recordings_left_out_are_counted(prompts):
    found = AsteriskPromptsRecords(prompts, "train", package=str(prompts))
    assert found.unread == {"recordings whose text is not what is said": 2, "recordings without a text": 1}


def test_wrong_options_are_refused(prompts, tmp_path):
    with pytest.raises(UserError, match="asterisk_prompts has no 'de'"):
        AsteriskPrompts(package=str(prompts), languages=("de",)).records("train", prompts, USUAL)
    with pytest.raises(UserError, match="no split 'dev'; it has train, validation, test"):
        records(prompts, "dev")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none holds no asterisk-core-sounds-en_.*deb; download"):
        AsteriskPromptsRecords(tmp_path, "train", package=str(tmp_path / "none"))
