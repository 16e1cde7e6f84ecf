"""Speech translation into English, and recognition, of four languages of FLEURS (Conneau et al. 2022, arXiv:2205.12446), from TFDS.

    mmjax train configs/standard/fleurs.py

TFDS prepares xtreme_s/fleurs.de_de and so on, and xtreme_s/fleurs.en_us (docs/data.md). A sentence has the same id in all languages:
`Translated` finds the English text of a recording by it. There are only about 8 hours of training recordings in each language, so
initialise the encoder from a pretrained one for good results (docs/pretrained-models.md). This config has not been trained yet.
"""

import dataclasses
from functools import cached_property
from pathlib import Path

from mmjax.config import Collection, SentencePiece, load
from mmjax.data.fields import Fields
from mmjax.data.inputs import Text
from mmjax.data.record import Record
from mmjax.data.tfds import TFDSRecords
from mmjax.errors import UserError
from mmjax.tree import part

ENGLISH = "en_us"
LANGUAGES = {
    "de_de": "German",
    "es_419": "Spanish",
    "fr_fr": "French",
    "it_it": "Italian",
}  # with TFDS's names for them


@part
class Translated(Collection):
    """Recordings of FLEURS in several languages, with their English text as `target`."""

    languages: tuple[str, ...] = tuple(LANGUAGES)
    directory: str | None = None  # TFDS's; None: $TFDS_DATA_DIR, or else ~/tensorflow_datasets

    def records(self, split: str, directory: Path, fields: Fields, once: bool = False) -> "TranslatedRecords":
        return TranslatedRecords(split, self.languages, self.directory, fields, once)


class TranslatedRecords:
    """The records of a split, by number: one language after the other."""

    def __init__(self, split: str, languages: tuple[str, ...], directory: str | None, fields: Fields, once: bool):
        def opened(language: str, **options) -> TFDSRecords:
            return TFDSRecords(split, name=f"xtreme_s/fleurs.{language}", directory=directory, once=once, **options)

        spoken = {"speech": "audio", "transcript": "transcription", "language": "language", "name": "id"}
        parts = [opened(language, fields=spoken, read=fields) for language in languages]
        self._records = [(part, number) for part in parts for number in range(len(part))]
        texts = Fields({"text": Text()}, {})
        self._english = opened(ENGLISH, fields={"text": "transcription", "name": "id"}, read=texts)
        self.files = [file for one in (*parts, self._english) for file in one.files]

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {
            record.name: record.inputs["text"] for record in map(self._english.__getitem__, range(len(self._english)))
        }

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        part, number = self._records[index]
        record = part[number]
        if record.name not in self._texts:
            raise UserError(f"sentence {record.name} of FLEURS has no English recording in this split")
        return record._replace(labels={**record.labels, "target": self._texts[record.name]})


covost = load(Path(__file__).with_name("covost.py"))
tokens = (*(f"<{language}>" for language in LANGUAGES.values()), "<translate>")

config = dataclasses.replace(
    covost,
    name="fleurs",
    steps=10_000,
    data=dataclasses.replace(
        covost.data,
        source=Translated(),
        tokenizer=SentencePiece(vocabulary=4096, special=tokens),
        prefixes={"target": ("<{language}>", "<translate>")},
        filters=dataclasses.replace(covost.data.filters, longest=40.0, largest_share_dropped=0.3),
    ),
)
