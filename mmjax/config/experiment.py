"""Everything else that a run is: objectives, data, optimizer, evaluation; and all of it, the Experiment."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mmjax.config.augmentation import SpeedPerturbation
from mmjax.config.models import Multimodal
from mmjax.config.part import part
from mmjax.config.schedules import Schedule

# Objectives. ----------------------------------------------------------------------------------------------


@part
class Classification:
    weight: float = 1.0
    label_smoothing: float = 0.0
    gamma: float = 0.0  # of the focal loss; 0: off


@part
class MultiLabel:
    weight: float = 1.0
    gamma: float = 0.0  # of the focal loss; 0: off


@part
class CTC:
    weight: float = 1.0


@part
class Transducer:
    weight: float = 1.0
    chunk: int = 8192  # columns of the joint network that are multiplied out at a time


@part
class Sequence:
    weight: float = 1.0
    label_smoothing: float = 0.0
    next_token: bool = True  # False: each token's label stands at its own place
    chunk: int = 8192  # columns of a `Vocabulary` head that are multiplied out at a time


@part
class Regression:
    weight: float = 1.0
    of: Literal["squared", "absolute", "huber"] = "squared"  # the difference
    delta: float = 1.0  # of "huber": where the square becomes a line, in the unit of the labels


@part
class SISDR:
    weight: float = 1.0


@part
class SigLIP:
    weight: float = 1.0
    chunks: int = 8  # steps in which the batch is compared; best a multiple of the devices


@part
class CLIP:
    weight: float = 1.0
    chunks: int = 8


Objective = Classification | MultiLabel | CTC | Transducer | Sequence | Regression | SISDR | SigLIP | CLIP


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
class AdamW:
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.01


@part
class Muon:
    momentum: float = 0.95
    b1: float = 0.9  # of Adam, for everything that is not a matrix between layers
    b2: float = 0.98
    weight_decay: float = 0.01


@part
class Lion:
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.1


@part
class Adafactor:
    weight_decay: float = 0.0


@part
class SGD:
    momentum: float = 0.9
    weight_decay: float = 0.0


Dtype = Literal["float32", "bfloat16"]


@part
class Optimizer:
    rule: AdamW | Muon | Lion | Adafactor | SGD = AdamW()
    schedule: Schedule
    clip: float | None = 1.0  # global gradient norm
    ema: float | None = None  # decay of the averaged parameters that are evaluated; None: evaluate the trained ones
    accumulation: int = 1  # micro-batches per step
    # In what is kept; all is computed in float32.
    parameters: Dtype = "float32"  # bfloat16: rounded at random, so that steps smaller than its digits count on average
    gradients: Dtype = "float32"  # between the backward pass and the rule, and summed over micro-batches
    moments: Dtype = "float32"  # the first ones (momentum); sums of squares stay float32


@part
class Uncertainty:
    pass


@part
class DynamicAverage:
    period: int = 1000  # steps over which losses are averaged
    temperature: float = 2.0  # the higher, the more equal the weights


@part
class GradNorm:
    shared: str  # "encoders.NAME" or "fusion": the part whose gradients are compared
    alpha: float = 1.5  # how strongly losses that lag behind are helped
    rate: float = 0.025  # of learning of the weights
    least: float = 1e-3  # weight


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
class Mesh:  # what is divided among how many devices
    data: int = -1  # rows of a batch; -1: all devices that the other axes leave
    fsdp: int = 1  # rows, and parameters, which are gathered where they are used
    tensor: int = 1  # heads, hidden units and vocabulary
    context: int = 1  # the tokens of a row


@part
class XLA:  # the compiler of the step
    preset: Literal["default", "overlap", "o1", "deterministic", "compile_fast"] = "default"
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)  # beside and before them


@part
class Experiment:
    name: str
    seed: int = 0
    steps: int
    data: Data
    model: Multimodal
    objectives: Mapping[str, Objective]
    optimizer: Optimizer
    weighting: Uncertainty | DynamicAverage | GradNorm | None = None  # of the objectives, beyond their fixed weights
    initial: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "encoders.speech": an import, or a run
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()
    xla: XLA = XLA()
