"""What the types of a tower or a fusion cannot say."""

from typing import Any

from mmjax import config as c
from mmjax.errors import UserError


def check_tower(path: str, tower: Any) -> None:
    """That widths divide as heads and positions need it."""
    heads = getattr(tower, "heads", 1)
    head_width = getattr(getattr(tower, "block", None), "head_width", None)
    if head_width is None and tower.width % heads:
        raise UserError(f"{path}.width={tower.width} does not divide among {heads} heads")
    shared = getattr(tower, "key_value_heads", None)
    if shared and heads % shared:
        raise UserError(f"{path}.heads={heads} do not divide among key_value_heads={shared}")
    pairs = 4 if isinstance(tower, c.ViT) else 2  # features that a rotary position turns together
    turned = isinstance(tower, c.Vectors) or getattr(tower, "positions", None) in ("rotary", "rotary_input")
    if turned and (head_width or tower.width // heads) % pairs:
        raise UserError(f"{path}: rotary positions need heads whose width divides by {pairs}")
    if getattr(tower, "positions", None) == "bucketed" and not 4 <= tower.buckets < 2 * tower.max_distance:
        raise UserError(f"{path}.buckets={tower.buckets} must be at least 4, and less than twice max_distance")
    if isinstance(tower, c.Conformer):
        _check_stem(path, tower)
        if tower.positions == "relative" and tower.width % 2:
            raise UserError(
                f"{path}.width={tower.width} is odd; the sines and cosines of relative positions need pairs"
            )
        if tower.left_chunks is not None and tower.chunk is None:
            raise UserError(f"{path}.left_chunks is {tower.left_chunks}, but there are no chunks: set chunk, too")
    if isinstance(tower, c.BiLSTM) and tower.width % 2:
        raise UserError(f"{path}.width={tower.width} does not divide among two directions")
    if isinstance(tower, c.ConvNet) and (tower.patch.bit_count() != 1 or tower.width % tower.patch):
        raise UserError(f"{path}.patch={tower.patch} must be a power of two that divides width={tower.width}")
    if isinstance(tower, c.ViT):
        if tower.positions == "sincos" and tower.width % 4:
            raise UserError(f"{path}.width={tower.width} does not divide into the 4 parts of sincos positions")
        if tower.image_size < tower.patch:
            raise UserError(f"{path}.image_size={tower.image_size} is less than one patch of {tower.patch}")
        for key in ("mean", "std"):
            value = getattr(tower, key)
            if isinstance(value, tuple) and (len(value) != 3 or (key == "std" and min(value) <= 0)):
                raise UserError(
                    f"{path}.{key} must be one number or 3{' above 0' if key == 'std' else ''}, not {value}"
                )


def _check_stem(path: str, tower: c.Conformer) -> None:
    """That a stem gets what it reads: samples, or frames."""
    learned = tower.stem == "waveform"
    if learned != isinstance(tower.front_end, c.Waveform):
        raise UserError(f"{path}: the stem 'waveform' and the front end Waveform need each other")
    if learned and tower.subsampling != 1:
        raise UserError(f"{path}.subsampling is {tower.subsampling}; the stem 'waveform' makes a token of every hop: 1")
    if learned and tower.augment and tower.augment.masks:
        raise UserError(f"{path}.augment.masks hide frequencies, which the samples of a Waveform do not have")


def check_fusion(model: c.Multimodal) -> None:
    fusion = model.fusion
    if isinstance(fusion, c.FiLM) and fusion.by not in model.encoders:
        raise UserError(f"model.fusion.by='{fusion.by}' is no modality; there are {', '.join(model.encoders)}")
    if isinstance(fusion, c.Bottleneck) and fusion.bottlenecks and fusion.layers < 2:
        raise UserError("model.fusion.layers is 1, but bottlenecks pass nothing on before the second layer")
    if isinstance(fusion, c.MixtureOfExperts) and fusion.chosen > fusion.experts:
        raise UserError(f"model.fusion.chosen={fusion.chosen} is more than its {fusion.experts} experts")


def check_speech_augmentation(augment: c.SpeechAugmentation, front_end: c.LogMel, path: str) -> None:
    """That augmentations agree with the front end whose samples they change; `path` is their key."""
    for key, value in c.flat(augment).items():
        if key.endswith("sample_rate") and value != front_end.sample_rate:
            raise UserError(f"{path}.{key} is {value}, but the front end's sample_rate is {front_end.sample_rate}")
    telephone = augment.telephone
    if telephone and not telephone.low < telephone.high <= telephone.sample_rate / 2:
        raise UserError(
            f"{path}.telephone passes {telephone.low} to {telephone.high} Hz; the band must lie below half the "
            f"sample_rate of {telephone.sample_rate} Hz"
        )
    if telephone and (telephone.taps % 2 == 0 or telephone.taps > 2 * front_end.hop + 1):
        raise UserError(
            f"{path}.telephone.taps is {telephone.taps}; hops of {front_end.hop} samples allow an odd number up to "
            f"{2 * front_end.hop + 1}"
        )
