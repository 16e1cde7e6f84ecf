"""The data of a run: a source, its tokenizer, and how its examples are packed into rows."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.filters import Filters
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.source import Opening, Source
from mmjax.data.speed import SpeedPerturbation
from mmjax.data.text import Tokenizer
from mmjax.data.tokenizers import TokenizerPart
from mmjax.tree import part


@part
class Data:
    """The data for training and evaluation, and how it is packed."""

    source: Source
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

    def open(
        self,
        split: str,
        directory: Path,
        tokenizer: Tokenizer | None = None,
        answers: tuple[str, ...] | None = None,
    ) -> Any:
        """Opens a split of the source (see `Source`); prepares the data first if necessary.

        Args:
          directory: folder of prepared data, indices and tokenizers.
          tokenizer: used instead of the config's, unless the config has none.
          answers: class names (or names of the numbers); None: those of the training split.

        Raises:
          UserError: there is no such split, or it cannot be read.
        """
        if self.tokenizer is None or tokenizer is None:
            tokenizer = self.tokenizer and self.tokenizer.open(self.source, directory)
        opening = Opening(directory, tokenizer, self.sample_rate, self.filters, self.rescale, self.prefixes, answers)
        return self.source.open(split, opening)
