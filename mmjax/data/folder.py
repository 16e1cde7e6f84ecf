"""Folders of files: files with the same stem form one example, and the name of their folder is their class."""

import os
from pathlib import Path
from typing import Any

from mmjax.data.fields import USUAL, Fields
from mmjax.data.files import Blob, below, join
from mmjax.data.record import IMAGES, SPEECH, Record, read_row
from mmjax.data.source import Listed
from mmjax.data.values import decoded
from mmjax.errors import UserError
from mmjax.tree import part

TEXT = ".txt"  # the transcript of a recording, or the caption of a picture, with the same stem
KINDS = {**dict.fromkeys(SPEECH, "speech"), **dict.fromkeys(IMAGES, "image"), TEXT: "text"}


@part
class Folder(Listed):
    """Recordings, pictures and texts in a folder for each split."""

    label: str | None = "answer"  # the label that the name of a file's folder gives; None: it gives none

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "FolderRecords":
        return FolderRecords(self.place(split), label=self.label, fields=fields)


class FolderRecords:
    """Recordings, pictures and texts below a folder, in the order of their paths; links to folders are followed.

    `dogs/7.png`, `dogs/7.flac` and `dogs/7.txt` are one example whose answer is "dogs". The text is the transcript if
    there is a recording, otherwise the target if there is a picture, otherwise an input text.

    Args:
      folder: its path.
      label: the label that is the folder's name; files directly in `folder` have none.
      fields: what to read.

    Attributes:
      unread: how many files of each kind belong to no example; hidden folders count as one each.
    """

    def __init__(self, folder: str, *, label: str | None = "answer", fields: Fields = USUAL):
        self._label, self._fields = label, fields
        groups: dict[str, dict[str, str]] = {}
        seconds: dict[str, list[str]] = {}
        files, self.unread = below(folder)
        for file in sorted(files):
            stem, ending = os.path.splitext(file)
            kind = KINDS.get(ending.lower())
            if kind is None:
                self.unread[f"*{ending}" if ending else "files without an ending"] += 1
            elif kind in groups.get(stem, {}):
                seconds.setdefault(kind, []).append(file)
            else:
                groups.setdefault(stem, {})[kind] = join(folder, file)
        self.unread.update(
            {f"second files for the {k} of an example, such as {some[0]}": len(some) for k, some in seconds.items()}
        )
        self._examples = sorted(groups.items())
        self.files = [file for _, files in self._examples for file in files.values()]
        if not self._examples:
            raise UserError(f"the folder {folder} holds no {', '.join(SPEECH + IMAGES)} or {TEXT}")

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """An example.

        Raises:
          UserError: the text file cannot be read.
        """
        name, files = self._examples[index]
        row: dict[str, Any] = {kind: Blob(file) for kind, file in files.items() if kind != "text"}
        if "text" in files:
            role = "transcript" if "speech" in files else "target" if "image" in files else "text"
            row[role] = decoded(Blob(files["text"]).read(), files["text"]).strip()
        if self._label and (folder := os.path.dirname(name)):
            row[self._label] = os.path.basename(folder)
        return read_row(row, "", name, fields=self._fields)[0]
