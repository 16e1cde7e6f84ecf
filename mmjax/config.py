"""Experiment: the one tree that describes a run, and its way from file, command line and JSON.

Every part is a frozen dataclass. Choosing a part is choosing its class; a part set to None is off. A class
here has the name and the fields of what it configures (`Conformer` here, `mmjax.models.Conformer` there),
so that building is a look-up by name and nothing is translated.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmjax.errors import UserError

part = dataclasses.dataclass(frozen=True, kw_only=True)


# Augmentation. Probabilities are per example. ---------------------------------------------------------------


@part
class SpecAugment:
    probability: float = 1.0
    frequency_masks: int = 2
    frequency_width: int = 27  # bins, of the widest mask
    time_masks: int = 10  # at most
    time_width: float = 0.05  # of the widest mask, as a share of the example
    multiplicity: float | None = None  # time masks per frame of the example; None: always `time_masks`


@part
class Reverberate:
    probability: float = 0.3
    minimum_decay: float = 0.1  # seconds until 60 dB are lost
    maximum_decay: float = 0.5
    minimum_ratio: float = 0.0  # dB, of direct to reverberant energy
    maximum_ratio: float = 12.0
    duration: float = 0.25  # seconds, of the response
    sample_rate: int = 16_000  # Hz


@part
class AddNoise:
    probability: float = 0.5
    minimum_snr: float = 5.0  # dB
    maximum_snr: float = 30.0
    colour: Literal["white", "pink"] = "pink"  # without a bank of recordings


@part
class TelephoneBand:
    probability: float = 0.1
    low: float = 300.0  # Hz
    high: float = 3400.0
    taps: int = 257  # odd, at most 2 hops + 1
    sample_rate: int = 16_000  # Hz


@part
class Gain:
    probability: float = 1.0
    minimum_gain: float = -6.0  # dB
    maximum_gain: float = 6.0


@part
class Clip:
    probability: float = 0.1
    maximum_share: float = 0.1  # of the samples
    threshold: float | None = None  # amplitude; None: by share


@part
class SpeechAugmentation:
    reverberate: Reverberate | None = None
    noise: AddNoise | None = None
    telephone: TelephoneBand | None = None
    gain: Gain | None = None
    clip: Clip | None = None
    masks: SpecAugment | None = None


@part
class SpectralGate:
    quiet: float = 0.1  # share of the frames that are taken for noise
    subtraction: float = 2.0  # times the noise floor
    reduction: float = 20.0  # dB, at most


@part
class SpeedPerturbation:
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)  # equally likely


# Models. Widths in features, sizes in the unit that the name says. ----------------------------------------


@part
class LogMel:
    sample_rate: int = 16_000  # Hz
    window: int = 400  # samples
    hop: int = 160  # samples; the unit of the speech stream's rows
    bins: int = 80


@part
class WhisperLogMel(LogMel):
    pass


@part
class NeMoLogMel(LogMel):
    pass


@part
class KaldiFilterBank(LogMel):
    normalise: bool = True  # each example to zero mean and unit variance


@part
class MFCC:
    log_mel: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank = KaldiFilterBank(bins=23, normalise=False)
    coefficients: int = 13
    lifter: float = 22.0  # 0: none

    sample_rate = property(lambda self: self.log_mel.sample_rate)
    window = property(lambda self: self.log_mel.window)
    hop = property(lambda self: self.log_mel.hop)


# Published sizes: Gulati et al. 2020, table 1 (S, M, L); NeMo's conformer_ctc_bpe.yaml and fast-conformer_ctc_bpe.yaml.
CONFORMERS = {
    "S": dict(layers=16, width=144, heads=4, kernel=32),
    "M": dict(layers=16, width=256, heads=4, kernel=32),
    "L": dict(layers=17, width=512, heads=8, kernel=32),
    "NeMo S": dict(layers=16, width=176, heads=4, kernel=31),
    "NeMo M": dict(layers=18, width=256, heads=4, kernel=31),
    "NeMo L": dict(layers=18, width=512, heads=8, kernel=31),
    "NeMo XL": dict(layers=24, width=1024, heads=8, kernel=5),
    "Fast L": dict(layers=18, width=512, heads=8, kernel=9, subsampling=8, stem="depthwise", stem_channels=256),
    "Fast XL": dict(layers=24, width=1024, heads=8, kernel=9, subsampling=8, stem="depthwise", stem_channels=256),
}


@part
class Conformer:
    front_end: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank | MFCC = LogMel()
    layers: int = 16
    width: int = 144
    heads: int = 4
    kernel: int = 32
    subsampling: Literal[2, 4, 8] = 4  # hops per token
    stem: Literal["full", "depthwise"] = "full"
    stem_channels: int | None = None  # of the strided stem; None: the width, as in the paper
    positions: Literal["relative", "rotary"] = "relative"
    norm: Literal["layer", "rms"] = "layer"
    convolution_norm: Literal["layer", "rms", "batch"] = "layer"  # batch: imported, its statistics fixed
    norm_epsilon: float = 1e-6
    causal: bool = False  # the convolution sees no later token
    chunk: int | None = None  # tokens that attention sees together, with all before; None: the whole recording
    left_chunks: int | None = None  # earlier chunks that it sees; None: all
    scale_input: bool = False
    augment: SpeechAugmentation | None = None  # in training
    denoise: SpectralGate | None = None
    dropout: float = 0.0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "Conformer":
        """A published size; any field may be changed.

        "modern L" is "L" (any of them) with rotary positions, RMSNorm and FastConformer's stem, kernel and subsampling.
        """
        modern = dict(
            positions="rotary", norm="rms", convolution_norm="rms", kernel=9, subsampling=8, stem="depthwise",
            stem_channels=256,
        )  # fmt: skip
        size = name.removeprefix("modern ")
        if size not in CONFORMERS:
            near = _nearest(size, CONFORMERS)
            raise UserError(f"there is no Conformer '{name}'{near}; there are {', '.join(CONFORMERS)}")
        return cls(**CONFORMERS[size] | (modern if size != name else {}) | changes)


@part
class BlockStyle:
    norm: Literal["layer", "rms"] = "layer"
    post_norm: bool = False
    epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] = "gelu"
    gated: bool = False
    bias: bool = True
    layer_scale: float | None = None  # first value of a learned factor per feature; None: no factor


@part
class BiLSTM:
    front_end: LogMel | WhisperLogMel | NeMoLogMel | KaldiFilterBank | MFCC = LogMel()
    layers: int = 2
    width: int = 256  # both directions together
    stem: Literal["stack", "full", "depthwise"] = "stack"  # full or depthwise convolutions make it a CNN-LSTM
    stem_channels: int = 32
    subsampling: Literal[2, 4, 8] = 4  # hops per token
    dropout: float = 0.0


@part
class ConvNet:
    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    width: int = 384
    mean: float = 0.5  # of the pixels, 0 to 1
    std: float = 0.5

    class_token = False
    registers = 0
    max_patches = None


# Published sizes of ViT: layers, width, heads, mlp (Dosovitskiy et al. 2021; Zhai et al. 2022; Alabdulmohsin et al. 2023).
VIT_SIZES = {
    "Ti": (12, 192, 3, 768),
    "S": (12, 384, 6, 1536),
    "B": (12, 768, 12, 3072),
    "L": (24, 1024, 16, 4096),
    "So400m": (27, 1152, 16, 4304),
    "H": (32, 1280, 16, 5120),
}


@part
class ViT:
    patch: int = 16  # pixels
    image_size: int = 224  # pixels
    layers: int = 12
    width: int = 384
    heads: int = 6
    mlp: int = 1536
    class_token: bool = False
    registers: int = 0  # further tokens per image that only the encoder sees
    positions: Literal["learned", "sincos", "rotary"] = "learned"
    max_patches: int | None = None  # of an image that keeps its aspect ratio; None: all are image_size squares
    block: BlockStyle = BlockStyle()
    mean: float | tuple[float, ...] = 0.5  # of the pixels, 0 to 1; of all channels or of each
    std: float | tuple[float, ...] = 0.5
    dropout: float = 0.0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "ViT":
        """A published size and patch, such as "B/16" or "So400m/14"; any field may be changed."""
        size, _, patch = name.partition("/")
        if size not in VIT_SIZES or not patch.isdecimal():
            raise UserError(f"there is no ViT '{name}'; name a size ({', '.join(VIT_SIZES)}) and a patch: B/16")
        fields = dict(zip(("layers", "width", "heads", "mlp"), VIT_SIZES[size], strict=True), patch=int(patch))
        return cls(**fields | changes)


@part
class Transformer:
    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    types: int = 0  # kinds of text that an imported BERT tells apart
    key_value_heads: int | None = None  # each shared by a group of heads; None: as many as heads
    causal: bool = False
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0


@part
class MeanEmbedding:
    vocabulary: int = 128
    width: int = 256
    dropout: float = 0.0


@part
class TextDecoder:
    vocabulary: int = 128
    layers: int = 6
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    positions: Literal["rotary", "learned"] = "rotary"
    length: int = 512  # tokens of the longest text, with learned positions
    key_value_heads: int | None = None
    cross_attention: bool = True
    tied: bool = True  # read out through the table of embeddings
    block: BlockStyle = BlockStyle()
    dropout: float = 0.0


@part
class Vectors:
    inputs: int  # numbers per vector
    layers: int = 2
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0


@part
class MeanPool:
    pass


@part
class ClassPool:
    pass


@part
class AttentionPool:
    heads: int = 12
    mlp: int = 3072
    block: BlockStyle = BlockStyle()


@part
class CrossAttention:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    queries: int = 4  # learned query tokens per example
    dropout: float = 0.0


@part
class Concat:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    dropout: float = 0.0


@part
class Add:
    width: int = 128


@part
class Weighted:
    width: int = 128


@part
class LowRank:
    width: int = 128
    rank: int = 4


@part
class FiLM:
    by: str  # the modality whose summary modulates the others
    layers: int = 3
    width: int = 128
    mlp: int = 512
    dropout: float = 0.0


@part
class Bottleneck:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    bottlenecks: int = 4  # tokens per example through which modalities exchange; 0: no exchange
    dropout: float = 0.0


@part
class Perceiver:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512
    latents: int = 8  # learned tokens per example
    dropout: float = 0.0


@part
class MixtureOfExperts:
    layers: int = 3
    width: int = 128
    heads: int = 4
    mlp: int = 512  # of each expert
    queries: int = 4  # learned query tokens per example
    experts: int = 4
    chosen: int = 2  # experts per query token
    dropout: float = 0.0


Fusion = CrossAttention | Concat | Add | Weighted | LowRank | FiLM | Bottleneck | Perceiver | MixtureOfExperts


@part
class Head:
    reads: str  # "fused" or the name of an encoder
    outputs: int
    pool: MeanPool | ClassPool | AttentionPool | None = None  # of an encoder's tokens; None: an output for each


@part
class Vocabulary:  # a head for `Sequence` with so many outputs that their logits do not fit into memory
    reads: str
    outputs: int


@part
class Contrast:  # a head for `SigLIP` and `CLIP`
    between: tuple[str, ...]  # two encoders
    outputs: int  # width of the vectors that are compared
    scale: float = 10.0  # of the logits at first; 14.3 in CLIP
    bias: float = -10.0  # of the logits at first; without effect in CLIP
    limit: float | None = None  # of the scale; 100 in CLIP


@part
class Multimodal:
    encoders: Mapping[str, Conformer | BiLSTM | ViT | ConvNet | Transformer | MeanEmbedding | Vectors]
    fusion: Fusion
    heads: Mapping[str, Head | Vocabulary | Contrast]
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the compute; parameters are float32
    unroll: bool = False  # the layers: the same numbers, faster on CPU, longer to compile


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


Objective = Classification | MultiLabel | CTC | Sequence | Regression | SISDR | SigLIP | CLIP


# Data. ----------------------------------------------------------------------------------------------------


@part
class SpokenEasyVQA:
    vocabulary: int = 128  # sentencepiece pieces
    examples: int | None = None  # only the first so many questions of each split; None: all


@part
class ImageAugmentation:
    least_area: float | None = 0.25  # of a random crop, as a share of the picture; None: no cropping
    aspect: float = 4 / 3  # a crop is up to so many times too wide or too high
    flip: float = 0.5  # how often a picture is mirrored
    operations: int | None = None  # of RandAugment per picture; None: no RandAugment
    magnitude: float = 9.0  # of RandAugment, 0 to 10


@part
class OwnSource:
    file: str  # a Python file, most simply the config itself: __file__
    name: str  # of the class in it, built as name(data directory, split, **options)
    options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)


@part
class Data:
    source: SpokenEasyVQA | OwnSource
    directory: str | None = None  # None: $MMJAX_DATA, else ~/.cache/mmjax
    batch_rows: int = 16  # rows of a batch, over all devices
    rows: Mapping[str, int]  # what a row holds of each stream: hops, patches, tokens, examples
    subsets: Mapping[str, float]  # modality dropout: how often each subset of modalities is trained on
    image_augmentation: ImageAugmentation | None = None  # in training
    window: int = 4096  # examples that the packer chooses from at a time
    threads: int = 1
    speed: SpeedPerturbation | None = None  # in training


# Training. ------------------------------------------------------------------------------------------------


@part
class Constant:
    peak: float = 1e-3
    warmup: int = 0  # steps


@part
class WarmupCosine:
    peak: float = 1e-3
    warmup: int = 100
    steps: int  # of warm-up and decay together
    end: float = 0.0  # as a share of the peak


@part
class WarmupLinear:
    peak: float = 1e-3
    warmup: int = 100
    steps: int
    end: float = 0.0


@part
class WarmupStableDecay:
    peak: float = 1e-3
    warmup: int = 100
    decay: int  # steps of the linear decay at the end
    steps: int
    end: float = 0.0


@part
class InverseSquareRoot:
    peak: float = 1e-3
    warmup: int = 100


Schedule = Constant | WarmupCosine | WarmupLinear | WarmupStableDecay | InverseSquareRoot


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


@part
class Optimizer:
    rule: AdamW | Muon | Lion | Adafactor | SGD = AdamW()
    schedule: Schedule
    clip: float | None = 1.0  # global gradient norm
    ema: float | None = None  # decay of the averaged parameters that are evaluated; None: evaluate the trained ones
    accumulation: int = 1  # micro-batches per step


@part
class Evaluation:
    every_steps: int | None = None  # None: at the end only
    split: str = "test"
    subsets: tuple[str, ...] = ("speech+image", "image+text")
    examples: int | None = None  # of the split, during training; None: all. The last evaluation takes all.


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
class Mesh:
    data: int = -1  # -1: all devices that the other axes leave
    fsdp: int = 1


@part
class Experiment:
    name: str
    seed: int = 0
    steps: int
    data: Data
    model: Multimodal
    objectives: Mapping[str, Objective]
    optimizer: Optimizer
    initial: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "encoders.speech": an imported model
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()


# From a file. ---------------------------------------------------------------------------------------------


def imported(directory: str | Path) -> Conformer | ViT | Transformer:
    """The encoder that `mmjax import` wrote; `Experiment.initial` says that its parameters are to be used too."""
    path = Path(directory) / "part.json"
    try:
        return from_dict(Conformer | ViT | Transformer, json.loads(path.read_text()), str(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is {directory} what mmjax import wrote?") from None


def load(path: str | Path) -> Experiment:
    """Runs a config file (Python that assigns `config = Experiment(...)`) or reads a resolved JSON."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no config file {path}")
    if path.suffix == ".json":
        try:
            return from_json(path.read_text(), str(path))
        except (UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not a resolved config: {error}") from None
    config = getattr(run_file(path), "config", None)
    if not isinstance(config, Experiment):
        raise UserError(f"the config file {path} must assign `config = Experiment(...)`")
    return from_dict(Experiment, to_dict(config), "")  # checks the types once, for all ways in


def run_file(path: Path) -> types.ModuleType:
    """Runs a Python file; its `__file__` is absolute, so that what it says of itself holds in any directory."""
    spec = importlib.util.spec_from_file_location(f"mmjax_config_{path.stem}", path.absolute())
    if spec is None:
        raise UserError(f"{path} is no config: it is neither a .py nor a .json file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the config file {path} does not run: {type(error).__name__}: {error}") from None
    return module


# To and from plain dictionaries. --------------------------------------------------------------------------


def to_dict(node: Any) -> Any:
    """A part as nested dictionaries; each carries the name of its class as "class"."""
    if dataclasses.is_dataclass(node):
        return {"class": type(node).__name__} | {f.name: to_dict(getattr(node, f.name)) for f in _fields(node)}
    if isinstance(node, Mapping):
        return {key: to_dict(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node


def from_dict(kind: Any, value: Any, path: str) -> Any:
    """Builds what the annotation `kind` asks for; an error names the key by its dotted `path`."""
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and type(None) in options:
        return None
    classes = {c.__name__: c for c in options if dataclasses.is_dataclass(c)}
    if classes:
        return _part_from_dict(classes, value, path)
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and value in arguments and type(value) is type(arguments[0]):
            return value
        if origin is Mapping and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {k: from_dict(arguments[1], v, _join(path, k)) for k, v in value.items()}
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(from_dict(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
        if option is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    raise UserError(f"{path} must be {_describe(kind)}, not {value!r}")


def _part_from_dict(classes: dict[str, type], value: Any, path: str) -> Any:
    if isinstance(value, str):  # a class by its name alone: its defaults
        value = {"class": value}
    if not isinstance(value, Mapping):
        raise UserError(f"{path} must be {' or '.join(classes)}, not {value!r}")
    name = value.get("class", next(iter(classes)) if len(classes) == 1 else None)
    if not isinstance(name, str) or name not in classes:
        raise UserError(f"{path or 'the config'} must be {' or '.join(classes)}, not {name!r}{_nearest(name, classes)}")
    cls = classes[name]
    hints = typing.get_type_hints(cls)
    for key in value:
        if key != "class" and key not in hints:
            raise UserError(f"unknown config key '{_join(path, key)}'{_nearest(key, hints, path)}")
    missing = [f.name for f in _fields(cls) if f.name not in value and _required(f)]
    if missing:
        raise UserError(f"{_join(path, missing[0])} is not set ({name} needs it)")
    return cls(**{k: from_dict(hints[k], v, _join(path, k)) for k, v in value.items() if k != "class"})


# Overrides from the command line. -------------------------------------------------------------------------


def override(config: Experiment, arguments: list[str]) -> Experiment:
    """Applies `--any.config.key VALUE` (or `--key=VALUE`); dashes and underscores are the same.

    A value is a number, `none`, `true`, `false`, text, the name of a class, or a Python literal.
    """
    tree = to_dict(config)
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise UserError(f"cannot read the argument {flag!r}; overrides look like --checkpoint.every-steps 100")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"the override --{key} has no value")
            text = rest.pop(0)
        _set(tree, key.replace("-", "_"), _literal(text))
    return from_dict(Experiment, tree, "")


def _set(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node, path = tree, ""
    for name in [*parents, last]:
        # Names that a person gave (a modality, a subset) may hold dashes: compare as the flag is read.
        found = next((k for k in node if k != "class" and k.replace("-", "_") == name), None)
        if found is None and name is last and set(node) == {"class"}:
            found = name  # of a class that was chosen a flag ago; `from_dict` knows its fields
        if found is None:
            raise UserError(f"unknown config key '{_join(path, name)}'{_nearest(name, node, path, tree)}")
        path = _join(path, found)
        if name is last and path.count(".") == len(parents):
            chosen = isinstance(value, str) and isinstance(node.get(found), dict) and "class" in node[found]
            node[found] = {"class": value} if chosen else value
        elif isinstance(node[found], dict):
            node = node[found]
        else:
            raise UserError(f"'{path}' is {node[found]!r} and has no keys of its own, so '{key}' does not exist")


def _literal(text: str) -> Any:
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


# JSON. ----------------------------------------------------------------------------------------------------


def to_json(config: Experiment) -> str:
    """The resolved config, every field written out."""
    return json.dumps(to_dict(config), indent=2) + "\n"


def from_json(text: str, name: str = "the config") -> Experiment:
    """The inverse of `to_json`; `name` is what an error calls the text."""
    try:
        return from_dict(Experiment, json.loads(text), "")
    except json.JSONDecodeError as error:
        raise UserError(f"{name} is not JSON: {error}") from None


def flat(config: Experiment) -> dict[str, Any]:
    """Every value by its dotted key."""

    def flatten(node, path):
        if isinstance(node, dict):
            return {k: v for key, value in node.items() for k, v in flatten(value, _join(path, key)).items()}
        return {path: node}

    return flatten(to_dict(config), "")


def differences(one: Experiment, other: Experiment) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configs differ, with both values."""
    a, b = flat(one), flat(other)
    return {k: (a.get(k), b.get(k)) for k in [*a, *(k for k in b if k not in a)] if a.get(k) != b.get(k)}


# Small helpers. -------------------------------------------------------------------------------------------


def _fields(node: Any):
    return dataclasses.fields(node)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _describe(kind: Any) -> str:
    if _is_union(kind):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _nearest(key: Any, known: Any, path: str = "", tree: dict | None = None) -> str:
    """'; did you mean ...?' with the nearest sibling, or the same name elsewhere in the tree."""
    near = difflib.get_close_matches(str(key), [k for k in known if k != "class"], n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{_join(path, near[0])}'?"
    for other in _paths(tree or {}, ""):
        if other.rsplit(".", 1)[-1] == key:
            return f"; did you mean '{other}'?"
    return f"; there are {', '.join(str(k) for k in known if k != 'class')}"


def _paths(node: Any, path: str):
    if isinstance(node, dict):
        for key, value in node.items():
            if key != "class":
                yield _join(path, key)
                yield from _paths(value, _join(path, key))
