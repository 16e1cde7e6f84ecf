"""WebDataset: random access to samples in tar files, without extracting them."""

import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob, matching, open_file
from mmjax.data.record import IMAGES, SPEECH, Record, read_row
from mmjax.data.source import Listed
from mmjax.data.values import decoded, parsed
from mmjax.errors import UserError
from mmjax.tree import part

# Endings of WebDataset's files -> fields.
TEXTS = {
    "txt": "text",
    "transcript": "transcript",
    "target": "target",
    "caption": "target",
    "cls": "answer",
    "lang": "language",
}
MEDIA = {ending[1:]: "speech" for ending in SPEECH} | {ending[1:]: "image" for ending in IMAGES}


class Sample(NamedTuple):
    """The locations of a sample's members.

    Attributes:
      file: number of its tar file.
      places: (offset, size) by kind: "json", one of `TEXTS`, or an input or label.
      problem: why the sample cannot be read; None if it can.
    """

    file: int
    key: str
    places: dict[str, tuple[int, int]]
    problem: str | None


@part
class TarShards(Listed):
    """Tar files of WebDataset: a pattern of files for each split, such as train-*.tar."""

    # The dot at which the key ends in a member's name: "7.seg.png" has the key "7" (first) or "7.seg" (last).
    keys_end: Literal["first_dot", "last_dot"] = "first_dot"

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "TarShardsRecords":
        return TarShardsRecords(self.place(split), keys_end=self.keys_end, fields=fields)


class TarShardsRecords:
    """Members with the same key ("7.flac", "7.png", "7.json") are one sample; tar files are sorted by name.

    A text (`.txt`) is the transcript if there is a recording, otherwise the target if there is a picture, otherwise an
    input text. `.cls` is the answer. `.json` holds all fields but recordings and pictures, which must be members. Members are read at their offset in the tar file and never extracted, so unsafe paths in a tar do no harm.

    "7.left.png" is the input or label "left" of sample 7, if there is one of that name; otherwise it is the picture,
    but only if there is no "7.png". A sample with two members for one part is an error.

    Args:
      files: a pattern such as data/train-*.tar; uncompressed tar files.
      keys_end: the dot of a member's name at which its key ends: "first_dot" (WebDataset) or "last_dot".
      fields: what to read.

    Attributes:
      unread: number of members, by kind, that belong to no sample.
    """

    def __init__(self, files: str, *, keys_end: str = "first_dot", fields: Fields = USUAL):
        self.files, self._fields = matching(files), fields
        self.unread: Counter[str] = Counter()
        self._samples: list[Sample] = []
        for number in range(len(self.files)):
            self._samples += self._read_members(number, keys_end == "last_dot")

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        """A sample; see `read`."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Record, list[str]]:
        """A sample, and the names in its JSON that are not used.

        Raises:
          UserError: a text is not UTF-8, the JSON is malformed or names a file, two members are the same part, a member
            is a link or sparse, or the tar file has changed.
        """
        sample = self._samples[index]
        file = self.files[sample.file]
        name = f"{file}:{sample.key}"
        if sample.problem is not None:
            raise UserError(f"{file}: {sample.problem}")
        blobs = {kind: Blob(file, *place) for kind, place in sample.places.items()}
        media = self._fields.inputs.keys() - self._fields.read_texts
        parts: dict[str, Any] = {kind: blob for kind, blob in blobs.items() if kind in media}
        about = _json(blobs["json"], f"{name}.json") if "json" in blobs else {}
        for kind in blobs.keys() - media - {"json"}:
            parts[_field(kind, blobs)] = decoded(blobs[kind].read(), f"{name}.{kind}").strip()
        about = {key: value for key, value in about.items() if key not in ("name", "id", "key", *parts)}
        # Recordings and pictures in the tar file have priority over paths in the JSON.
        record, unread = read_row({**about, **parts}, "", name, fields=self._fields)
        for field, value in record.inputs.items():
            pieces = self._fields.inputs[field].pieces(value)
            if any(isinstance(piece, Blob) and piece.file != file for piece in pieces):
                raise UserError(
                    f"{name}.json names a file for {field}, but only members are read: add it to the tar file"
                )
        return record._replace(name=name), unread

    def _read_members(self, number: int, last_dot: bool) -> Iterator[Sample]:
        """Yields the samples of a tar file in order of their first members; counts members that belong to no sample."""
        samples: dict[str, dict[str, list[tuple[str, tarfile.TarInfo]]]] = {}
        file, fields = self.files[number], {*self._fields.inputs, *self._fields.labels}
        try:
            with open_file(file) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.rpartition(".") if last_dot else base.partition(".")
                    own, _, last = ending.rpartition(".")
                    kind = own if own in fields else MEDIA.get(last.lower(), last.lower())
                    if member.isdir():
                        continue
                    if base.startswith("."):
                        self.unread["hidden files"] += 1
                    elif kind in ("speech", "image", "json", *TEXTS, *fields):
                        key = f"{folder}/{stem}" if folder else stem
                        samples.setdefault(key, {}).setdefault(kind, []).append((ending, member))
                    else:
                        self.unread[f"*.{ending}" if ending else "files without an ending"] += 1
        except (OSError, tarfile.TarError) as error:
            raise UserError(f"cannot read the tar file {file}: {error}; is it compressed, or truncated?") from None
        for key, found in samples.items():
            members = {kind: self._nearest(some) for kind, some in found.items()}
            places = {kind: (some[0].offset_data, some[0].size) for kind, some in members.items()}
            yield Sample(number, key, places, _problem(members))

    def _nearest(self, found: list[tuple[str, tarfile.TarInfo]]) -> list[tarfile.TarInfo]:
        """Among the members for one part of a sample, those with a plain ending ("7.png") if any, otherwise all."""
        exact = [member for ending, member in found if "." not in ending]
        if exact:
            self.unread.update(f"*.{ending}" for ending, _ in found if "." in ending)
        return exact or [member for _, member in found]


def _field(kind: str, kinds: Collection[str]) -> str:
    """The field for a kind of text; `kinds` are all kinds in the sample."""
    plain = "transcript" if "speech" in kinds else "target" if "image" in kinds else "text"
    return plain if kind == "txt" else TEXTS.get(kind, kind)


def _problem(members: dict[str, list[tarfile.TarInfo]]) -> str | None:
    """Why a sample cannot be read: two members for one part, or a member that is sparse, a link, or no file."""
    fields: dict[str, list[tarfile.TarInfo]] = {}
    for kind, found in members.items():
        fields.setdefault(_field(kind, members), []).extend(found)
    for field, found in fields.items():
        names = [member.name for member in found]
        if len(set(names)) < len(names):
            return f"{names[0]} is there twice"
        if len(names) > 1:
            return (
                f"{names[0]} and {names[1]} are the same part ({field}) of one sample, since keys end at the first dot of a "
                "name; if they should end at the last dot, set data.source.keys_end to last_dot"
            )
        (member,) = found
        if member.issparse():
            return f"{member.name} is stored with holes (tar --sparse); make the tar file without that option"
        if member.islnk() or member.issym():
            return (
                f"{member.name} is a link to {member.linkname}; make the tar file with --dereference --hard-dereference"
            )
        if not member.isreg():
            return f"{member.name} is not a regular file"
    return None


def _json(blob: Blob, name: str) -> dict[str, Any]:
    about = parsed(decoded(blob.read(), name), name)
    if not isinstance(about, dict):
        raise UserError(f"{name} is not a JSON object")
    return about
