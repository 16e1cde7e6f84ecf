"""Everything else that a run is: objectives, data, optimizer, evaluation; and all of it, the Experiment."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mmjax.data.speed import SpeedPerturbation
from mmjax.models import Multimodal
from mmjax.objectives import Objective
from mmjax.parallel.mesh import Mesh
from mmjax.parallel.xla import XLA
from mmjax.train.optimizer import Optimizer
from mmjax.train.weighting import Weighting
from mmjax.tree import part

# Data. ----------------------------------------------------------------------------------------------------


@part
class SpokenEasyVQA:
    vocabulary: int = 128  # sentencepiece pieces
    examples: int | None = None  # only the first so many questions of each split; None: all


@part
class Manifest:  # .jsonl, .json, .csv, .tsv
    splits: Mapping[str, str]  # "train": the file
    root: str | None = None  # of the paths in it; None: the file's own place
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # their names -> speech, transcript, ...


@part
class Folder:
    splits: Mapping[str, str]  # "train": the folder
    answers: bool = True  # the folder that a file lies in is its class


@part
class TarShards:
    splits: Mapping[str, str]  # "train": a pattern of files, train-*.tar
    keys_end: Literal["first_dot", "last_dot"] = (
        "first_dot"  # of a member's name: "7.seg.png" belongs to "7", or "7.seg"
    )


@part
class Parquet:
    splits: Mapping[str, str]  # "train": a pattern of files, train-*.parquet
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


@part
class Shards:
    directory: str  # that `mmjax data build` wrote


@part
class TuxPaintStamps:
    package: str | None = None  # the .deb file of tuxpaint-stamps-default; None: apt fetches it
    languages: tuple[str, ...] = ()  # that are spoken; none: all
    written: bool = False  # descriptions without a recording, too


@part
class TFDS:  # a data set that TFDS has prepared as ArrayRecord
    name: str  # "librispeech", "coco_captions/2014", "c4/en:3.1.0"
    splits: Mapping[str, str]  # "train": a split in TFDS's words, "train[:90%]"
    fields: Mapping[str, str] | None = None  # "target": "captions/text/0"; None: known for some forty data sets
    directory: str | None = None  # None: $TFDS_DATA_DIR, else ~/tensorflow_datasets
    sample_rate: int | None = None  # Hz, of recordings, where the data set does not say it


Collection = Manifest | Folder | TarShards | Parquet | TFDS | Shards | TuxPaintStamps


@part
class OwnSource:
    file: str  # a Python file, most simply the config itself: __file__
    name: str  # of the class in it, built as name(data directory, split, **options)
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)


@part
class Mixture:
    sources: Mapping[str, SpokenEasyVQA | OwnSource | Collection]
    weights: Mapping[str, float] | None = None  # how many examples are drawn of each; None: as many as it has
    temperature: float = 1.0  # without weights: above 1, small sources get more
    # Of a source at most, in examples that it has, also those that fit into no row; then others take over.
    epochs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # "1000000": other weights, from that example on.
    later: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@part
class SentencePiece:
    vocabulary: int = 1000  # pieces
    file: str | None = None  # a trained model; None: it is trained on the texts of the training split
    byte_fallback: bool = True  # what no piece covers is written in bytes; takes 256 pieces
    normalisation: Literal["nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", "identity"] = "nmt_nfkc"
    special: tuple[
        str, ...
    ] = ()  # tokens for `Data.prefixes`, which no text can spell: "<fr>"; of a file, those it must have


@part
class HuggingFaceTokenizer:
    file: str  # a tokenizer.json
    add_special_tokens: bool = True  # those that its post-processor puts around what is read: [CLS] ... [SEP]


@part
class Filters:  # what is left out, and counted; None: no such limit
    shortest: float | None = None  # seconds of speech
    longest: float | None = None
    characters_per_second: float | None = 40.0  # of a transcript
    tokens_per_frame: float | None = None  # of a transcript, for each of CTC's frames
    frame: float = 0.04  # seconds of one of them
    largest_share_dropped: float = 0.05  # more is an error


@part
class ImageAugmentation:
    least_area: float | None = 0.25  # of a random crop, as a share of the picture; None: no cropping
    aspect: float = 4 / 3  # a crop is up to so many times too wide or too high
    flip: float = 0.5  # how often a picture is mirrored
    operations: int | None = None  # of RandAugment per picture; None: no RandAugment
    magnitude: float = 9.0  # of RandAugment, 0 to 10


@part
class ImageMixing:
    mixup: float | None = 0.2  # alpha of the share's Beta distribution; None: off
    cutmix: float | None = None  # likewise
    probability: float = 1.0


@part
class Data:
    source: SpokenEasyVQA | OwnSource | Collection | Mixture
    tokenizer: SentencePiece | HuggingFaceTokenizer | None = None  # of the texts of collections and mixtures
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


# Training. ------------------------------------------------------------------------------------------------


@part
class Evaluation:
    every_steps: int | None = None  # None: at the end only
    split: str = "test"
    subsets: tuple[str, ...] = ("speech+image", "image+text")
    examples: int | None = None  # evenly spread over the split, during training; None: all
    final_examples: int | None = None  # the same, of the evaluation at the end


@part
class Checkpoint:
    every_steps: int | None = 100  # None: at the end only
    keep: int = 3  # the newest so many; the last one always stays


@part
class Log:
    every_steps: int = 10
    tensorboard: bool = True
    wandb_project: str | None = None


@part
class Experiment:
    name: str
    seed: int = 0
    steps: int
    data: Data
    model: Multimodal
    objectives: Mapping[str, Objective]
    optimizer: Optimizer
    weighting: Weighting | None = None  # of the objectives, beyond their fixed weights
    initial: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "encoders.speech": an import, or a run
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()
    xla: XLA = XLA()
