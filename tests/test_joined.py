"""Records one after the other: every record once, with all that is said, and nothing joined that should stay apart."""

import json

import numpy as np
import pytest
import soundfile

from mmjax import config as c
from mmjax.data.fields import USUAL
from mmjax.errors import UserError

RANDOM = np.random.default_rng(0)
RATE = 16_000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """24 recordings of 0.5 to 2 seconds in two languages, and a list of them for each of two splits."""
    home, rows = tmp_path_factory.mktemp("joined"), []
    for number in range(24):
        samples = RANDOM.uniform(-0.5, 0.5, int(RANDOM.uniform(0.5, 2) * RATE))
        soundfile.write(home / f"{number}.wav", samples, RATE, subtype="FLOAT")
        language = ("de", "fr")[number % 2]
        rows.append(
            {"speech": f"{number}.wav", "transcript": f"word{number}", "language": language, "answer": language}
        )
    rows[5]["speech"] = "missing.wav"
    for split in ("train", "test"):
        (home / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def listed(home):
    return c.Manifest(splits={split: str(home / f"{split}.jsonl") for split in ("train", "test")})


def opened(home, split="train", **settings):
    data = c.Data(
        source=c.Joined(source=listed(home), **settings),
        tokenizer=c.SentencePiece(vocabulary=45, byte_fallback=False),
        batch_rows=1,
        rows={"speech": 2000, "transcript": 100, "examples": 8},
        subsets={"speech": 1.0},
        filters=c.Filters(largest_share_dropped=0.2),
    )
    return data.open(split, home / "cache")


def test_each_record_is_heard_once_in_its_language_and_what_is_said_is_written(home):
    records = c.Joined(source=listed(home), most=3).records("train", home / "cache", USUAL)
    joined = opened(home, most=3)
    ((unread, reason),) = joined.quarantine
    assert "missing.wav" in reason and records[unread].labels["transcript"] == "word5"
    heard = []
    for number, record in enumerate(records[one] for one in range(len(records)) if one != unread):
        words, example = record.labels["transcript"].split(), joined[number]
        assert len(words) <= 3 and example.labels["transcript"] == " ".join(words)
        numbers = [int(word.removeprefix("word")) for word in words]
        assert len({one % 2 for one in numbers}) == 1
        assert record.labels["answer"] == record.tags["language"] == ("de", "fr")[numbers[0] % 2]
        samples, place = example.inputs["speech"](), 0
        assert len(samples) == joined.sizes["speech"][number]
        for one in numbers:  # each recording to the bit, with up to 1 second of quiet noise before all but the first
            own = soundfile.read(home / f"{one}.wav", dtype="float32")[0]
            (start,) = (i for i in range(place, place + RATE + 1) if np.array_equal(samples[i : i + 8], own[:8]))
            assert np.array_equal(samples[start : start + len(own)], own)
            silence = samples[place:start]
            assert (start == 0) if one == numbers[0] else 0.2 * RATE <= len(silence) <= RATE
            assert not len(silence) or 0.0005 < silence.std() < 0.0015
            place = start + len(own)
        assert place == len(samples)
        heard += numbers
    assert sorted(heard) == [one for one in range(24) if one != 5]
    assert len(records) < 18


def test_a_joined_recording_is_not_longer_than_the_limit(home):
    joined = opened(home, most=9, seconds=5.0)
    lengths = joined.sizes["speech"] / RATE
    assert lengths.max() <= 5.0 and np.median(lengths) > 2.5


def test_other_splits_stay_as_they_are(home):
    assert len(opened(home, "test")) == 23 and len(opened(home, "test", joins=("train", "test"))) < 20


@pytest.mark.parametrize("settings", [{"most": 0}, {"seconds": 0.0}, {"pause": (1.0, 0.5)}, {"noise": 1.0}])
def test_wrong_numbers_are_refused(home, settings):
    with pytest.raises(UserError, match="Joined: most="):
        c.Joined(source=listed(home), **settings).records("train", home, USUAL)


def test_conversations_are_not_joined(home):
    fields = USUAL._replace(inputs=USUAL.inputs | {"text": c.Conversation()})
    with pytest.raises(UserError, match="cannot join conversations"):
        c.Joined(source=listed(home)).records("train", home, fields)


def test_a_text_with_alternatives_is_not_joined(home):
    rows = [{"text": "a question", "answer": ["yes", "no"]} for _ in range(9)]
    (home / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = c.Joined(source=c.Manifest(splits={"train": str(home / "answers.jsonl")}))
    records = source.records("train", home / "cache", USUAL._replace(labels={"answer": "text"}))
    with pytest.raises(UserError, match="'answer' has several texts"):
        [records[number] for number in range(len(records))]
