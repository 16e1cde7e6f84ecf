"""The data of a run: a source, its tokenizer, and how its examples are packed into rows."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.corpus import Filters
from mmjax.data.image_augmentation import ImageAugmentation
from mmjax.data.image_mixing import ImageMixing
from mmjax.data.source import Opening, Source
from mmjax.data.speed import SpeedPerturbation
from mmjax.data.tokenizers import TokenizerPart
from mmjax.tree import part


@part
class Data:
    """What a run trains on and is evaluated on, and how it is packed."""

    source: Source
    tokenizer: TokenizerPart | None = None  # of the texts of collections and mixtures
    # Special tokens before each text of a collection, by its tags: {"target": ("<{language}>", "<{task}>")}.
    prefixes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    sample_rate: int = 16_000  # Hz, that a collection's recordings are resampled to
    filters: Filters = Filters()  # of a collection
    rescale: bool = False  # recordings of values far outside -1..1 are scaled into it; else they are left out
    directory: str | None = None  # None: $MMJAX_DATA, else ~/.cache/mmjax
    batch_rows: int = 16  # rows of a batch, over all devices
    rows: Mapping[str, int]  # what a row holds of each stream: hops, patches, tokens, examples
    subsets: Mapping[str, float]  # modality dropout: how often each subset of modalities is trained on
    image_augmentation: ImageAugmentation | None = None  # in training
    image_mixing: ImageMixing | None = None  # in training, of pictures that are classified
    window: int = 4096  # examples that the packer chooses from at a time
    threads: int = 1
    speed: SpeedPerturbation | None = None  # in training

    def open(self, split: str, directory: Path) -> Any:
        """A split of the source (see `Source`), prepared first where that has not been done.

        Args:
          directory: where prepared data, indices and tokenizers are kept.

        Raises:
          UserError: there is no such split, or it cannot be read.
        """
        tokenizer = self.tokenizer and self.tokenizer.open(self.source, directory)
        opening = Opening(directory, tokenizer, self.sample_rate, self.filters, self.rescale, self.prefixes)
        return self.source.open(split, opening)
