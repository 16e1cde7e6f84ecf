"""Asterisk's prompts: what a telephone exchange says, spoken by one person in each of five languages.

The Debian packages asterisk-core-sounds-XX-wav (CC BY-SA 3.0; Italian and Russian CC BY 3.0) hold recordings at 8 kHz,
asterisk-core-sounds-XX their texts. A prompt has the same name in all languages. mmjax does not contain the data: apt
fetches the packages, or the user names a folder with their files.

A recording is left out if its spoken text is uncertain: the text is empty, is given twice, or has words in brackets. Such
words describe a sound ("[this is a simple beep tone]"), or are a note to the speaker ("IAX (note: does not say "2")"). If only
signs are in brackets ("at [@]"), they are removed and the recording stays. The Spanish texts have almost no accents.
"""

import gzip
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmjax.data.debian import members, unpacked
from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection
from mmjax.data.splitting import check_split, phrase, splits_of
from mmjax.errors import UserError, nearest
from mmjax.tree import part

LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian"}
SOUNDS, TEXTS = "usr/share/asterisk/sounds", "usr/share/doc"
ALIKE = 80.0  # per cent of equal letters from which on two texts are in one split


@part
class AsteriskPrompts(Collection):
    """Asterisk's prompts: recordings with transcripts in five languages, and translations into English."""

    package: str | None = None  # folder with the .deb files of the packages; None: apt fetches them
    languages: tuple[str, ...] = tuple(LANGUAGES)  # those of the recordings

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "AsteriskPromptsRecords":
        options = dict(package=self.package, languages=self.languages, fields=fields)
        return AsteriskPromptsRecords(directory, split, **options)


class AsteriskPromptsRecords:
    """One record per recording: speech, transcript, the English text as target, and the name of the language as answer.

    English recordings, and recordings of prompts without an English text, have no target.

    A prompt is in the same split (80, 10 and 10 %) in all languages, together with all prompts that have a sentence in
    common with it, or a text that differs in less than a fifth of its letters, in any language.

    Args:
      directory: folder for the unpacked archives.
      split: "train", "validation" or "test".
      package: folder with .deb files; None: apt fetches them (without root).
      languages: those of the recordings. The texts of all languages are read, so that the splits do not depend on it.
      fields: what to read.

    Attributes:
      unread: how many recordings of these languages are no examples, by reason, over all splits.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        *,
        package: str | None = None,
        languages: tuple[str, ...] = tuple(LANGUAGES),
        fields: Fields = USUAL,
    ):
        check_split(split, "asterisk_prompts")
        for language in languages:
            if language not in LANGUAGES:
                raise UserError(f"asterisk_prompts has no '{language}'{nearest(language, LANGUAGES)}")
        self._fields = fields
        home = Path(directory) / "asterisk_prompts"
        of_texts = {one: _archive(home, f"asterisk-core-sounds-{one}", 0.02, package) for one in LANGUAGES}
        of_sounds = {one: _archive(home, f"asterisk-core-sounds-{one}-wav", 20, package) for one in languages}
        self.files = [str(archive) for archive in (*of_texts.values(), *of_sounds.values())]
        written = {one: read_texts(archive, one) for one, archive in of_texts.items()}
        self._texts = {
            one: {name: said for name in all_ if (said := spoken(name, all_[name]))} for one, all_ in written.items()
        }
        chosen = splits_of(keys_of(self._texts))
        self.unread: Counter[str] = Counter()
        self._records: list[tuple[str, str, Blob]] = []
        for language, archive in of_sounds.items():
            for name, blob in read_sounds(archive):
                if name in self._texts[language]:
                    self._records += [(name, language, blob)] if chosen[name] == split else []
                elif name in written[language]:
                    self.unread["recordings whose text is not what is said"] += 1
                else:
                    self.unread["recordings without a text"] += 1

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        name, language, speech = self._records[index]
        row = {"speech": speech, "transcript": self._texts[language][name], "language": language}
        row["answer"] = LANGUAGES[language]
        if language != "en":
            row["target"] = self._texts["en"].get(name)
        return read_row(row, "", f"{name} ({language})", fields=self._fields)[0]


def _archive(home: Path, package: str, megabytes: float, given: str | None) -> Path:
    return unpacked(home / package, package, megabytes, given)


def read_texts(archive: Path, language: str) -> dict[str, list[str]]:
    """The texts of each prompt as they are written, by the prompt's name."""
    file = f"core-sounds-{language}.txt.gz"
    found: dict[str, list[str]] = {}
    for path, blob in members(archive, TEXTS):
        if path.endswith(f"/{file}"):
            for line in gzip.decompress(blob.read()).decode("utf-8-sig", errors="replace").splitlines():
                name, colon, text = line.partition(":")
                if colon and not line.startswith(";") and text.strip():
                    found.setdefault(name.strip(), []).append(" ".join(text.split()))
    if not found:
        raise UserError(f"{archive} holds no texts ({file}); is it the Debian package asterisk-core-sounds-{language}?")
    return found


def spoken(name: str, written: Iterable[str]) -> str | None:
    """What is said in the recording of a prompt; None: its texts do not say it."""
    if len({*written}) > 1:
        return None
    text = re.sub(r"[\[(<][^\w\])>]*[\])>]", "", *written)  # a sign, as in "at [@]"
    text = text.removeprefix(f"{name}:").replace("...", " ")
    if text.count('"') % 2:
        text = text.replace('"', "")
    text = " ".join(text.split())
    return text if phrase(text) and not re.search(r"[\[\](){}<>]", text) else None


def read_sounds(archive: Path) -> list[tuple[str, Blob]]:
    """The recordings of an archive by the prompt's name, sorted; the first folder is that of the language and voice."""
    found = [(path.partition("/")[2], blob) for path, blob in members(archive, SOUNDS)]
    return sorted((path.removesuffix(".wav"), blob) for path, blob in found if path.endswith(".wav"))


def keys_of(texts: Mapping[str, Mapping[str, str]]) -> dict[str, set[tuple[str, ...]]]:
    """Keys of each prompt that must not be in two splits: its sentences, and pairs of texts that are almost equal.

    Args:
      texts: language -> name of the prompt -> its text.
    """
    from rapidfuzz import fuzz, process

    found: dict[str, set[tuple[str, ...]]] = {name: set() for own in texts.values() for name in own}
    for language, own in texts.items():
        for name, text in own.items():
            found[name] |= {(language, phrase(sentence)) for sentence in re.split(r"[.!?;:]", text)} - {(language, "")}
        names, phrases = list(own), [phrase(text) for text in own.values()]
        alike = process.cdist(phrases, phrases, scorer=fuzz.ratio, score_cutoff=ALIKE)
        for one, other in zip(*alike.nonzero(), strict=True):
            pair = tuple(sorted((names[one], names[other])))
            found[names[one]].add(pair)
            found[names[other]].add(pair)
    return found
