"""The TFDS builder of spoken_easy_vqa.

easy-VQA (the PyPI package `easy-vqa`, MIT) has 5,000 pictures of 64 x 64 pixels, each with one coloured shape,
and 48,248 questions (107 distinct) with 13 answers. espeak-ng speaks every question in 48 training voices and
8 test voices. The voices of the two splits share no variant, so no test voice occurs in training.

Encoded bytes are stored (PNG, OGG Vorbis), since TFDS's own Image and Audio features need TensorFlow.
"""

import contextlib
import functools
import io
import multiprocessing
import operator
import os
from pathlib import Path

import easy_vqa
import numpy as np
import tensorflow_datasets as tfds

from mmjax import progress
from mmjax.data.audio import encode_ogg, read_audio
from mmjax.data.speech_synthesis import Voice, synthesise
from mmjax.data.spoken_easy_vqa import SAMPLE_RATE, SPLITS, VERSION

_TRAIN_VARIANTS = "m1 m2 m4 m5 m7 m8 f1 f3 f4 f5 Alex Andy Annie belinda max rob"
_TEST_VARIANTS = "m3 m6 f2 linda"
# Pitch (espeak's 0..100) and speed (words per minute).
VOICES = {
    "train": [Voice(v, p, s) for v in _TRAIN_VARIANTS.split() for p, s in ((35, 150), (50, 175), (65, 200))],
    "test": [Voice(v, p, s) for v in _TEST_VARIANTS.split() for p, s in ((42, 165), (58, 185))],
}


class SpokenEasyVqa(tfds.core.GeneratorBasedBuilder):
    """easy-VQA with spoken questions; `examples` limits the number of questions of each split."""

    RELEASE_NOTES = {VERSION: "easy-VQA 1.0, spoken by espeak-ng 1.52 in 48 + 8 voices."}
    VERSION = tfds.core.Version(VERSION)
    pkg_dir_path = Path(__file__).parent  # otherwise TFDS would import the package's resources to find it

    def __init__(self, *, examples: int | None = None, **options):
        self._examples = examples
        super().__init__(file_format="array_record", **options)

    def _info(self):
        encoded = tfds.features.Tensor(shape=(), dtype=np.object_)
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            homepage="https://github.com/vzhou842/easy-VQA",
            features=tfds.features.FeaturesDict(
                {
                    "image": encoded,  # PNG
                    "speech": encoded,  # OGG Vorbis, mono, 16 kHz
                    "question": tfds.features.Text(),
                    "answer": tfds.features.ClassLabel(names=easy_vqa.get_answers()),
                    "voice": tfds.features.Text(),
                    "samples": tfds.features.Scalar(np.int64),
                }
            ),
        )

    def _split_generators(self, _):
        pairs = {split: question_pairs(split)[: self._examples] for split in SPLITS}
        recordings = _speak_all(sorted({(p["question"], p["voice"]) for split in SPLITS for p in pairs[split]}))
        return {split: self._generate_examples(split, pairs[split], recordings) for split in SPLITS}

    def _generate_examples(self, split, pairs, recordings):
        with progress.bar(f"writing {split}", len(pairs), "questions") as bar:
            for number, pair in enumerate(pairs):
                speech, samples = recordings[pair["question"], pair["voice"]]
                yield number, {**pair, "voice": pair["voice"].name, "speech": speech, "samples": samples}
                bar.advance()


def build(directory: Path, examples: int | None) -> Path:
    """Writes the data set and the index of its sizes; returns their directory."""
    tfds.disable_progress_bar()
    builder = SpokenEasyVqa(data_dir=directory, examples=examples)
    progress.console.print(f"preparing spoken_easy_vqa in {directory.parent} (once)")
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints there, but standard output is for results
        builder.download_and_prepare()
    home = Path(builder.data_dir)
    for split in SPLITS:
        records = builder.as_data_source(split=split)
        texts, text, samples = {}, [], []
        for at in range(0, len(records), 1024):
            for record in records.__getitems__(list(range(at, min(at + 1024, len(records))))):
                text.append(texts.setdefault(record["question"].decode(), len(texts)))
                samples.append(record["samples"])
        np.savez(home / f"index_{split}.npz", samples=samples, texts=list(texts), text=text)
    return home


def question_pairs(split: str) -> list[dict]:
    """The questions of a split, each with its answer, its encoded picture and a random voice."""
    questions, answers, image_ids = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    images = {number: Path(path).read_bytes() for number, path in paths.items()}
    choice = np.random.default_rng(0).integers(len(VOICES[split]), size=len(questions))
    return [
        {"question": question, "answer": answer, "image": images[image], "voice": VOICES[split][voice]}
        for question, answer, image, voice in zip(questions, answers, image_ids, choice, strict=True)
    ]


def _speak_all(wanted: list[tuple[str, Voice]]) -> dict[tuple[str, Voice], tuple[bytes, int]]:
    """Speaks each (text, voice) once, on all cores; returns OGG bytes and the number of samples.

    espeak-ng keeps the state of a voice's flutter between utterances, and cannot reset it. So each voice speaks its
    texts in order in a new process, which makes the recordings independent of the number of cores.
    """
    by_voice = [
        (voice, [text for text, speaker in wanted if speaker == voice])
        for voice in functools.reduce(operator.iadd, VOICES.values(), [])
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    recordings = {}
    with (
        context.Pool(min(os.cpu_count(), 16), maxtasksperchild=1) as pool,
        progress.bar("speaking", len(wanted), "recordings") as bar,
    ):
        for voice, spoken in pool.imap(_speak, by_voice, chunksize=1):
            recordings |= {(text, voice): recording for text, recording in spoken.items()}
            bar.advance(len(spoken))
    return recordings


def _speak(request: tuple[Voice, list[str]]) -> tuple[Voice, dict[str, tuple[bytes, int]]]:
    voice, texts = request
    encoded = {text: encode_ogg(synthesise(text, voice, SAMPLE_RATE), SAMPLE_RATE) for text in texts}
    return voice, {text: (data, len(read_audio(data, SAMPLE_RATE))) for text, data in encoded.items()}
