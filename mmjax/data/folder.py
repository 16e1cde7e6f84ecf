"""Folders of files: files with the same stem form one example, and the name of their folder is their class."""

import os
from pathlib import Path

from mmjax.data.files import Blob, below, join
from mmjax.data.record import IMAGES, SPEECH, Record, decoded, normal
from mmjax.data.source import Listed
from mmjax.errors import UserError
from mmjax.tree import part

TEXT = ".txt"  # the transcript of a recording, or the caption of a picture, with the same stem
KINDS = {**dict.fromkeys(SPEECH, "speech"), **dict.fromkeys(IMAGES, "image"), TEXT: "text"}


@part
class Folder(Listed):
    """Recordings, pictures and texts in a folder for each split."""

    answers: bool = True  # the name of a file's folder is its class

    def records(self, split: str, directory: Path, once: bool = False) -> "FolderRecords":
        return FolderRecords(self.place(split), answers=self.answers)


class FolderRecords:
    """Recordings, pictures and texts below a folder, in the order of their paths; links to folders are followed.

    `dogs/7.png`, `dogs/7.flac` and `dogs/7.txt` are one example whose answer is "dogs". The text is the transcript if
    there is a recording, otherwise the target if there is a picture, otherwise an input text.

    Args:
      folder: its path.
      answers: whether the folder name is the answer; files directly in `folder` have no answer.

    Attributes:
      unread: how many files of each kind belong to no example; hidden folders count as one each.
    """

    def __init__(self, folder: str, *, answers: bool = True):
        self._answers = answers
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
        parts = {}
        for kind in ("speech", "image"):
            if kind in files:
                parts[kind] = Blob(files[kind])
        if "text" in files:
            role = "transcript" if "speech" in parts else "target" if "image" in parts else "text"
            parts[role] = decoded(Blob(files["text"]).read(), files["text"]).strip()
        label = os.path.dirname(name)
        return normal(Record(name=name, answer=os.path.basename(label) if label and self._answers else None, **parts))
