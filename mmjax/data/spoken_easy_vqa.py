"""spoken_easy_vqa: easy-VQA's pictures and questions, with a spoken version of every question.

This module prepares the data set once, and reads it; `spoken_easy_vqa_builder` describes and generates it.
"""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.example import Example
from mmjax.data.fields import USUAL, Fields
from mmjax.data.labels import Label
from mmjax.data.preparation import check_installed, prepared
from mmjax.data.record import Record, read_row
from mmjax.data.source import Collection, Opening, Texts
from mmjax.data.splitting import check_split
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.tree import part

SPLITS = ("train", "test")
VERSION = "1.0.0"
SAMPLE_RATE = 16_000
IMAGE_SIZE = 64  # pixels
MAKERS = {
    "easy_vqa": "easy-vqa",
    "espeakng_loader": "espeakng-loader",
}  # modules needed for preparation, and their packages


@part
class SpokenEasyVQA(Collection):
    """easy-VQA's pictures and questions, every question spoken by a synthetic voice."""

    takes_prefixes = False
    can_be_built = False

    vocabulary: int = 128  # sentencepiece pieces
    examples: int | None = None  # use only this many questions of each split; None: all

    def has(self, split: str) -> bool:
        return split in SPLITS

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "SpokenEasyVQARecords":
        return SpokenEasyVQARecords(directory, split, examples=self.examples, fields=fields)

    def open(self, split: str, opening: Opening) -> Any:
        """Opens a split with the sizes that were stored when the data was prepared; with an index if answers are texts."""
        if opening.fields.labels.get("answer") == "text":
            return super().open(split, opening)
        options = dict(vocabulary=self.vocabulary, examples=self.examples)
        return SpokenEasyVQAExamples(opening.directory, split, tokenizer=opening.tokenizer, **options)

    def texts(self, directory: Path, fields: Fields = USUAL) -> list[Texts]:
        if fields.labels.get("answer") == "text":
            return super().texts(directory, fields)
        learned = self.open("train", Opening(directory)).learned
        return [Texts(repr(self), lambda: learned)]

    def is_prepared(self, directory: Path) -> bool:
        return home_of(directory, self.examples).is_dir()


class SpokenEasyVQAExamples:
    """One split of the prepared data set: random access to its examples, their sizes, and a tokenizer.

    Attributes:
      sizes: [n] samples of "speech", [n, 2] height and width of "image", [n] tokens of "text" and "transcript".
      tokenizer: the given one, or else a sentencepiece model trained on the training questions.
      learned: the training questions, without duplicates.
      labels: the 13 classes of "answer".
      sample_rate: sample rate of the speech, in Hz.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        *,
        vocabulary: int = 128,
        examples: int | None = None,
        tokenizer: Tokenizer | None = None,
    ):
        self._records = SpokenEasyVQARecords(directory, split, examples=examples)
        home = self._records.home
        try:
            with np.load(home / "index_train.npz") as index:
                learned = index["texts"].tolist()
            with np.load(home / f"index_{split}.npz") as index:
                samples, texts, text = index["samples"], index["texts"].tolist(), index["text"]
        except Exception as error:
            raise _damaged(home, error) from None
        self.labels = {"answer": Label("class", self._records.answers)}
        # Not stored with the data, since each run chooses its vocabulary size; training is fast and deterministic.
        self.tokenizer = tokenizer or Tokenizer.train(sorted(learned), vocabulary)
        self.learned = learned
        count = {"text": self.tokenizer.read, "transcript": self.tokenizer.to_write}
        tokens = {name: np.array([len(ids(t)) for t in texts])[text] for name, ids in count.items()}
        picture = np.broadcast_to(np.array([IMAGE_SIZE, IMAGE_SIZE], np.int32), (len(samples), 2))
        self.sizes = {"speech": samples, "image": picture, **tokens}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads one example; speech and image stay encoded until they are used."""
        from mmjax.data.audio import read_audio

        stored = self._records.stored(index)
        speech = functools.partial(read_audio, stored["speech"], SAMPLE_RATE, f"spoken_easy_vqa[{index}]")
        return Example(
            inputs={"speech": speech, "image": stored["image"], "text": stored["question"]},
            labels={"transcript": stored["question"], "answer": stored["answer"]},
        )


class SpokenEasyVQARecords:
    """The records of one split: speech, image, the question as text and transcript, and the answer.

    Attributes:
      home: folder of the prepared data; files: those of the split.
      answers: the 13 classes of "answer".
    """

    def __init__(
        self, directory: str | os.PathLike, split: str, *, examples: int | None = None, fields: Fields = USUAL
    ):
        check_split(split, "spoken_easy_vqa", SPLITS)
        import tensorflow_datasets as tfds

        self._fields, self.home = fields, prepare(directory, examples=examples)
        try:
            builder = tfds.builder_from_directory(self.home)
            self.answers = tuple(builder.info.features["answer"].names)
            self._stored = builder.as_data_source(split=split)
            self.files = [str(file) for file in builder.info.splits[split].filepaths]
        except Exception as error:
            raise _damaged(self.home, error) from None

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Record:
        """A record."""
        stored = self.stored(index)
        row = {"speech": stored["speech"], "image": stored["image"], "answer": self.answers[stored["answer"]]}
        row |= {"text": stored["question"], "transcript": stored["question"]}
        return read_row(row, "", f"spoken_easy_vqa[{index}]", fields=self._fields)[0]

    def stored(self, index: int) -> dict[str, Any]:
        """The encoded recording and picture, the question, and the number of the answer."""
        try:
            stored = self._stored[int(index)]
        except Exception as error:
            raise _damaged(self.home, error) from None
        return {**stored, "question": stored["question"].decode(), "answer": int(stored["answer"])}


def _damaged(home: Path, error: Exception) -> UserError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(f"the prepared data in {home} is damaged ({reason}); delete it, and it will be made again")


def home_of(directory: str | os.PathLike, examples: int | None = None) -> Path:
    """The folder of the prepared data set below `directory`; it may not exist yet."""
    name = "spoken_easy_vqa" if examples is None else f"spoken_easy_vqa_{examples}"
    return Path(directory) / name / VERSION


def prepare(directory: str | os.PathLike, examples: int | None = None) -> Path:
    """Generates the data set in `directory` if it does not exist; returns its folder.

    Raises:
      UserError: a required package is not installed, the directory cannot be written, or the disk is full.
    """
    home = home_of(directory, examples)
    if not home.is_dir():
        check_installed("spoken_easy_vqa", MAKERS, "quickstart", " (espeak-ng is GPL-3.0)")

    def make(temporary: Path) -> Path:
        from mmjax.data.spoken_easy_vqa_builder import build

        return build(temporary, examples)

    return prepared(home, make)
