"""The data of a run: a source, its tokenizer, and how its examples are packed into rows."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmjax.data.fields import Fields, fields_of
from mmjax.data.filters import Filters
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.inputs import Input
from mmjax.data.labels import SPOKEN, Label
from mmjax.data.source import Opening, Source
from mmjax.data.speed import SpeedPerturbation
from mmjax.data.text import Tokenizer
from mmjax.data.tokenizers import TokenizerPart
from mmjax.errors import UserError
from mmjax.tree import part


@part
class Data:
    """The data for training and evaluation, and how it is packed."""

    source: Source  # where examples come from
    # Inputs of the examples, by the name of stream and encoder; speech, image and text need no entry.
    inputs: Mapping[str, Input] = dataclasses.field(default_factory=dict)
    tokenizer: TokenizerPart | None = None  # for the texts of collections and mixtures
    # Special tokens before each text of a collection, by its tags: {"target": ("<{language}>", "<{task}>")}.
    prefixes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sample_rate: int = 16_000  # Hz; recordings of collections are resampled to it
    filters: Filters = Filters()  # limits for the examples of collections
    rescale: bool = False  # scale recordings with values far outside -1..1; otherwise they are left out
    directory: str | None = None  # folder of prepared data; None: $MMJAX_DATA, or else ~/.cache/mmjax
    batch_rows: int = 16  # rows per batch, over all devices
    rows: Mapping[str, int]  # capacity of a row by stream: hops, patches, tokens, examples
    subsets: Mapping[str, float]  # modality dropout: probability of each subset of modalities in training
    image_augmentation: ImageAugmentation | None = None  # in training
    image_mixing: ImageMixing | None = None  # in training, for image classification
    window: int = 4096  # number of examples that are packed together
    threads: int = 1  # threads that read and decode
    speed: SpeedPerturbation | None = None  # in training
    # If a label has several texts, which one is learned: always the most frequent text, or a text that is drawn in each step.
    alternatives: Literal["most_frequent", "drawn"] = "most_frequent"
    # Folders with the outputs of frozen encoders, by encoder (`mmjax data encode`); their rows are counted in tokens.
    encoded: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def of(self, source: Source) -> "Data":
        """The same settings for another source, with its own inputs."""
        return dataclasses.replace(self, source=source, encoded={})

    def fields(self, labels: Mapping[str, str] | None = None) -> Fields:
        """What is read of each record, with the labels that tasks ask for (None: the usual ones)."""
        return fields_of(self.inputs, labels)._replace(drawn=self.alternatives == "drawn")

    def open(
        self,
        split: str,
        directory: Path,
        labels: Mapping[str, str] | None = None,
        tokenizer: Tokenizer | None = None,
        known: Mapping[str, Label] | None = None,
    ) -> Any:
        """Opens a split of the source (see `Source`); prepares the data first if necessary.

        Args:
          directory: folder of prepared data, indices and tokenizers.
          labels: the labels that tasks ask for, by name: "class", "classes", "numbers" or "text" (`mmjax.data.labels`);
            None: the usual labels.
          tokenizer: used instead of the config's, unless the config has none.
          known: the labels of a run that has begun, with the names of its classes; None: those of the training split.

        Raises:
          UserError: there is no such split, or it cannot be read; or no example of the training split has one of the
            labels.
        """
        fields = self.fields(labels)
        if self.tokenizer is None or tokenizer is None:
            tokenizer = self.tokenizer and self.tokenizer.open(self.source, directory, fields)
        options = (self.sample_rate, self.filters, self.rescale, self.prefixes, fields, known)
        found = self.source.open(split, Opening(directory, tokenizer, *options))
        needed = [name for name in labels or () if name not in fields.phrases] if split == "train" else ()
        for name in needed:
            _check_there_is(name, found, fields)
        return found


MISSPELT = 0.8  # likeness (`difflib`) from which a label is taken for a misspelt name of a column


def _check_there_is(name: str, source: Any, fields: Fields) -> None:
    """Checks that some example has a label."""
    instead = "text" if name == SPOKEN else name  # where a source states no transcripts, the text is spoken
    if name in source.labels or name in fields.inputs or np.any(source.sizes.get(name, source.sizes.get(instead, 0))):
        return
    columns = sorted(getattr(source, "columns", ()), key=lambda one: -difflib.SequenceMatcher(None, one, name).ratio())
    read = list(dict.fromkeys([*(one for one, sizes in source.sizes.items() if np.any(sizes)), *source.labels]))
    instead = (*columns, *(one for one in read if one in fields.texts), "their name")[0]
    near = difflib.get_close_matches(name, [*columns, *read], n=1, cutoff=MISSPELT)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    raise UserError(
        f"a task needs the label '{name}', but no example has it{meant}; no field is read from the columns "
        f"{', '.join(columns) or '(none)'}; the fields are {', '.join(read) or '(none)'} "
        f'(columns of lists and tables can be renamed: data.source.columns={{"{instead}": "{name}"}})'
    )
