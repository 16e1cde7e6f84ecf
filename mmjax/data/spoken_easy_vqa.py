"""spoken_easy_vqa: easy-VQA's pictures and questions, every question also spoken.

The data set itself is described in `spoken_easy_vqa_builder`; here it is prepared once and read.
"""

import fcntl
import importlib.util
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mmjax.data.audio import read_audio
from mmjax.data.example import Example
from mmjax.data.source import Opening, Source, Texts
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.tree import part

SPLITS = ("train", "test")
VERSION = "1.0.0"
SAMPLE_RATE = 16_000
IMAGE_SIZE = 64  # pixels
MAKERS = {"easy_vqa": "easy-vqa", "espeakng_loader": "espeakng-loader"}  # modules and their packages


@part
class SpokenEasyVQA(Source):
    """easy-VQA's pictures and questions, every question spoken by a synthetic voice."""

    vocabulary: int = 128  # sentencepiece pieces
    examples: int | None = None  # only the first so many questions of each split; None: all

    def open(self, split: str, opening: Opening) -> "SpokenEasyVQAExamples":
        options = dict(vocabulary=self.vocabulary, examples=self.examples)
        return SpokenEasyVQAExamples(opening.directory, split, tokenizer=opening.tokenizer, **options)

    def texts(self, directory: Path) -> list[Texts]:
        learned = self.open("train", Opening(directory)).learned
        return [Texts(repr(self), lambda: learned)]

    def is_prepared(self, directory: Path) -> bool:
        return home_of(directory, self.examples).is_dir()


class SpokenEasyVQAExamples:
    """The prepared data set of one split: random access, an index of sizes, a tokenizer.

    Attributes:
      sizes: per example, the samples of its speech, the height and width of its picture, the tokens of its text and transcript.
      tokenizer: the one given, else a sentencepiece model trained on the training questions.
      learned: those questions, each once.
      answers: the 13 answers, in the order of their labels.
      sample_rate: of the speech, in Hz.
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
        if split not in SPLITS:
            raise UserError(f"spoken_easy_vqa has no split '{split}'; it has {' and '.join(SPLITS)}")
        import tensorflow_datasets as tfds

        self._home = home = prepare(directory, examples=examples)
        try:
            with np.load(home / "index_train.npz") as index:
                learned = index["texts"].tolist()
            with np.load(home / f"index_{split}.npz") as index:
                samples, texts, text = index["samples"], index["texts"].tolist(), index["text"]
            builder = tfds.builder_from_directory(home)
            self.answers = builder.info.features["answer"].names
            self._records = builder.as_data_source(split=split)
        except Exception as error:
            raise self._damaged(error) from None
        # The size of the vocabulary is a choice of the run, not of the data; training takes a moment and is exact.
        self.tokenizer = tokenizer or Tokenizer.train(sorted(learned), vocabulary)
        self.learned = learned
        tokens = {
            name: np.array([len(self.tokenizer.of_stream(name, t)) for t in texts])[text]
            for name in ("text", "transcript")
        }
        picture = np.broadcast_to(np.array([IMAGE_SIZE, IMAGE_SIZE], np.int32), (len(samples), 2))
        self.sizes = {"speech": samples, "image": picture, **tokens}

    def _damaged(self, error: Exception) -> UserError:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return UserError(f"the prepared data in {self._home} is damaged ({reason}); delete it, and it is made again")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        """Reads one example; speech and image are left encoded until they are wanted."""
        try:
            record = self._records[int(index)]
        except Exception as error:
            raise self._damaged(error) from None
        text = record["question"].decode()
        return Example(
            speech=lambda: read_audio(record["speech"], SAMPLE_RATE, f"spoken_easy_vqa[{index}]"),
            image=record["image"],
            text=text,
            transcript=text,
            answer=int(record["answer"]),
        )


def home_of(directory: str | os.PathLike, examples: int | None = None) -> Path:
    """Where the prepared data set lies, or will lie, below `directory`."""
    name = "spoken_easy_vqa" if examples is None else f"spoken_easy_vqa_{examples}"
    return Path(directory) / name / VERSION


def prepare(directory: str | os.PathLike, examples: int | None = None) -> Path:
    """Synthesises and writes the data set into `directory`, once; returns where it lies.

    All is written under a temporary name and renamed at the end: an interrupted preparation leaves nothing
    that could be taken for a data set, and the next one clears it away. Processes that come at the same time
    wait for the first.

    Raises:
      UserError: what makes it is not installed, the directory cannot be written, or the disk is full.
    """
    directory, home = Path(directory), home_of(directory, examples)
    name = home.parent.name
    if home.is_dir():
        return home
    missing = [package for module, package in MAKERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"spoken_easy_vqa is made with {' and '.join(missing)}, not installed here: pip install 'mmjax[quickstart]' "
            "(espeak-ng is GPL-3.0)"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / f".{name}.lock"):
            if not home.is_dir():  # else another process has just made it
                temporary = directory / f".{name}.preparing"
                shutil.rmtree(temporary, ignore_errors=True)
                from mmjax.data.spoken_easy_vqa_builder import build

                made = build(temporary, examples)
                home.parent.mkdir(exist_ok=True)
                os.rename(made, home)
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot prepare data in {directory}: {error.strerror or error}; set --data.directory or MMJAX_DATA"
        ) from None
    return home


@contextmanager
def _locked(path: Path):
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel even when the process is killed
        yield
