"""WebDataset: samples in tar files, read at random without extracting them."""

import json
import tarfile

from mmjax.data.files import Blob, matching, open_file
from mmjax.data.folder import IMAGES, SPEECH
from mmjax.data.record import Record, from_row
from mmjax.errors import UserError

# The endings of WebDataset's files -> parts of a record.
TEXTS = {
    "txt": "text",
    "transcript": "transcript",
    "target": "target",
    "caption": "target",
    "cls": "answer",
    "lang": "language",
}


class TarShards:
    """Files of one key ("7.flac", "7.png", "7.json") are one sample; tar files in the order of their names.

    A text (`.txt`) is the transcript of a recording, where there is one, else the target of a picture, else a text to be
    read; `.cls` is the answer, and `.json` holds any names of `Record`. Nothing is extracted: a sample is read from where
    it lies in its tar file, so no path in it can lead anywhere.

    Args:
      files: a pattern such as data/train-*.tar; uncompressed tar files.
    """

    def __init__(self, files: str):
        self.files = matching(files)
        self._samples = []
        for number, file in enumerate(self.files):
            self._samples += _samples(file, number)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        """A sample.

        Raises:
          UserError: its texts are not UTF-8, its JSON is none, or its tar file has changed.
        """
        number, key, members = self._samples[index]
        file, name, row = self.files[number], f"{self.files[number]}:{key}", {}
        for ending, (offset, size) in members.items():
            blob, kind = Blob(file, offset, size), ending.rpartition(".")[2]
            if f".{kind}" in SPEECH:
                row.setdefault("speech", blob)
            elif f".{kind}" in IMAGES:
                row.setdefault("image", blob)
            elif kind in TEXTS or kind == "json":
                row[kind] = _text(blob, f"{name}.{ending}")
        return _record(row, name)


def _record(row: dict[str, Blob | str], name: str) -> Record:
    parts = {kind: row.pop(kind) for kind in ("speech", "image") if kind in row}
    about = {}
    if "json" in row:
        try:
            about = json.loads(row.pop("json"))
        except ValueError as error:
            raise UserError(f"{name}.json is not JSON: {error}") from None
        if not isinstance(about, dict):
            raise UserError(f"{name}.json is no JSON object")
    for kind, text in row.items():
        role = TEXTS[kind]
        if kind == "txt":
            role = "transcript" if "speech" in parts else "target" if "image" in parts else "text"
        about[role] = text
    # The tar file's own recording and picture go before any path that its JSON may name.
    about = {key: value for key, value in about.items() if key not in ("name", "id", "key", *parts)}
    return from_row({**about, **parts}, "", name)._replace(name=name)


def _text(blob: Blob, name: str) -> str:
    try:
        return blob.read().decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8: {error.reason}") from None


def _samples(file: str, number: int) -> list[tuple[int, str, dict[str, tuple[int, int]]]]:
    """(number of the file, key, {ending: (offset, size)}) of its samples, in the order in which they begin."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with open_file(file) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if member.isreg() and stem and ending:
                    samples.setdefault(f"{folder}/{stem}" if folder else stem, {})[ending.lower()] = (
                        member.offset_data, member.size,
                    )  # fmt: skip
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot read the tar file {file}: {error}; is it an uncompressed tar, and whole?") from None
    return [(number, key, members) for key, members in samples.items()]
