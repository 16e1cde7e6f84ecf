"""WebDataset: samples in tar files, read at random without extracting them."""

import json
import tarfile
from collections import Counter
from typing import Any, NamedTuple

from mmjax.data.files import Blob, matching, open_file
from mmjax.data.record import IMAGES, SPEECH, Record, decoded, read_row
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
MEDIA = {ending[1:]: "speech" for ending in SPEECH} | {ending[1:]: "image" for ending in IMAGES}


class Member(NamedTuple):
    """Where a file lies in its tar file.

    Attributes:
      name: in the tar file.
      problem: why its bytes are not what it holds; None: they are.
    """

    name: str
    offset: int
    size: int
    problem: str | None


class TarShards:
    """Files of one key ("7.flac", "7.png", "7.json") are one sample; tar files in the order of their names.

    A text (`.txt`) is the transcript of a recording, where there is one, else the target of a picture, else a text to be
    read; `.cls` is the answer, and `.json` holds any names of `Record` but recordings and pictures, which are members
    themselves. Nothing is extracted: a sample is read from where it lies in its tar file, so no path in it can lead anywhere.

    "7.seg.png" is the picture of sample 7 only if it has no "7.png". Two members that would be the same part of a sample
    are an error of that sample.

    Args:
      files: a pattern such as data/train-*.tar; uncompressed tar files.
      keys_end: at which dot of a member's name its key ends: "first_dot" (WebDataset) or "last_dot".

    Attributes:
      unread: how many members of each kind belong to no sample.
    """

    def __init__(self, files: str, *, keys_end: str = "first_dot"):
        self.files = matching(files)
        self.unread: Counter[str] = Counter()
        self._samples: list[tuple[int, str, dict[str, list[Member]]]] = []
        for number, file in enumerate(self.files):
            found = _samples(file, keys_end == "last_dot", self.unread)
            self._samples += [(number, key, members) for key, members in found.items()]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Record:
        """A sample; see `read`."""
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Record, list[str]]:
        """A sample, and the names in its JSON that nothing is read from.

        Raises:
          UserError: its texts are not UTF-8, its JSON is none or names a file, two members are the same part of it, one is a
            link or has holes, or its tar file has changed.
        """
        number, key, members = self._samples[index]
        file = self.files[number]
        name = f"{file}:{key}"
        blobs = {kind: _blob(found, file) for kind, found in members.items()}
        parts: dict[str, Any] = {kind: blobs[kind] for kind in ("speech", "image") if kind in blobs}
        about = {} if "json" not in blobs else _json(blobs["json"], f"{name}.json")
        for role, found in _roles(members).items():
            if len(found) > 1:
                raise _collision(found, role, file)
            parts[role] = decoded(_blob(found, file).read(), f"{file}:{found[0].name}").strip()
        about = {key: value for key, value in about.items() if key not in ("name", "id", "key", *parts)}
        # The tar file's own recording and picture go before any path that its JSON may name.
        record, unread = read_row({**about, **parts}, "", name)
        for part in ("speech", "image"):
            if getattr(record, part) is not None and part not in parts:
                raise UserError(
                    f"{name}.json names a file for {part}; nothing outside of a tar file is read: add it as a member"
                )
        return record._replace(name=name), unread


def _roles(members: dict[str, list[Member]]) -> dict[str, list[Member]]:
    """The texts of a sample by the field that they are."""
    roles: dict[str, list[Member]] = {}
    for kind, found in members.items():
        if kind not in ("speech", "image", "json"):
            plain = "transcript" if "speech" in members else "target" if "image" in members else "text"
            roles.setdefault(plain if kind == "txt" else TEXTS[kind], []).extend(found)
    return roles


def _blob(members: list[Member], file: str) -> Blob:
    if len(members) > 1:
        raise _collision(members, "", file)
    (member,) = members
    if member.problem:
        raise UserError(f"{file}: {member.name} {member.problem}")
    return Blob(file, member.offset, member.size)


def _collision(members: list[Member], role: str, file: str) -> UserError:
    first, second = members[0].name, members[1].name
    if first == second:
        return UserError(f"{file} holds {first} twice")
    return UserError(
        f"{file}: {first} and {second} are the same part{role and f' ({role})'} of one sample, since a key ends at the first "
        "dot of a name; where it ends at the last, set data.source.keys_end to last_dot"
    )


def _json(blob: Blob, name: str) -> dict[str, Any]:
    try:
        about = json.loads(decoded(blob.read(), name))
    except ValueError as error:
        raise UserError(f"{name} is not JSON: {error}") from None
    if not isinstance(about, dict):
        raise UserError(f"{name} is no JSON object")
    return about


def _samples(file: str, last_dot: bool, unread: Counter[str]) -> dict[str, dict[str, list[Member]]]:
    """Key -> kind -> members of its samples, in the order in which they begin; what no sample has is counted.

    A kind is "speech", "image", "json" or one of `TEXTS`.
    """
    samples: dict[str, dict[str, list[tuple[str, Member]]]] = {}
    try:
        with open_file(file) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.rpartition(".") if last_dot else base.partition(".")
                last = ending.rpartition(".")[2].lower()
                kind = MEDIA.get(last, last)
                if member.isdir():
                    continue
                if base.startswith("."):
                    unread["hidden files"] += 1
                elif kind in ("speech", "image", "json", *TEXTS):
                    found = Member(member.name, member.offset_data, member.size, _problem(member))
                    key = f"{folder}/{stem}" if folder else stem
                    samples.setdefault(key, {}).setdefault(kind, []).append((ending, found))
                else:
                    unread[f"*.{ending}" if ending else "files without an ending"] += 1
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"cannot read the tar file {file}: {error}; is it an uncompressed tar, and whole?") from None
    return {key: {kind: _nearest(found, unread) for kind, found in members.items()} for key, members in samples.items()}


def _nearest(found: list[tuple[str, Member]], unread: Counter[str]) -> list[Member]:
    """Of the members that could be one part of a sample those whose ending is that alone, if there are any."""
    exact = [member for ending, member in found if "." not in ending]
    if exact:
        unread.update(f"*.{ending}" for ending, _ in found if "." in ending)
    return exact or [member for _, member in found]


def _problem(member: tarfile.TarInfo) -> str | None:
    if member.issparse():
        return "is stored with holes (tar --sparse); make the tar file without that option"
    if member.islnk() or member.issym():
        return f"is a link to {member.linkname}; make the tar file with --dereference, and --hard-dereference"
    return None if member.isreg() else "is no file"
