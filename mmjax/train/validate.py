"""What the types of a config cannot say: ranges, and parts that must agree with each other."""

from typing import Any

from mmjax import config as c
from mmjax.errors import UserError

# The least value of a number by the end of its key; of the others 1 for integers and 0 for floats.
AT_LEAST = {
    "mesh.data": -1,
    "seed": 0,
    "warmup": 0,
    "minimum_decay": 1e-3,
    "decay": 0,
    "registers": 0,
    "types": 0,
    "mask": 0,
    "mean": float("-inf"),
    "std": 1e-6,
    "minimum_gain": float("-inf"),
    "maximum_gain": float("-inf"),
    "minimum_snr": float("-inf"),
    "maximum_snr": float("-inf"),
    "minimum_ratio": float("-inf"),
    "maximum_ratio": float("-inf"),
    "frequency_masks": 0,
    "time_masks": 0,
    "bias": float("-inf"),
    "scale": 1e-6,
    "rotary_base": 1.0,
    "epsilon": 1e-12,
    "limit": 1e-6,
    "bottlenecks": 0,
    "_distance": 0,
}
# Streams that have a meaning of their own; those of vectors need other names.
TAKEN = ("speech", "image", "text", "transcript", "target", "examples", "answer", "fused")
FREE = ("data.source.options.", "xla.options.")  # numbers that mean what others make of them
SHARES = ("dropout", "label_smoothing", "ema", "b1", "b2", "momentum")
AT_MOST_ONE = ("probability", "share", "start", "time_width", "multiplicity", "maximum_share", "quiet")


def check_config(config: c.Experiment) -> None:
    """What types cannot say: numbers within their ranges, and parts that agree with each other."""
    _check_numbers(config)
    if config.seed >= 2**63:
        raise UserError(f"seed is {config.seed}; it must be less than 2**63")
    if sum(config.data.subsets.values()) <= 0:
        raise UserError("data.subsets draws nothing: give at least one subset a weight above 0")
    _check_context(config)
    if config.model.strict_attention and config.model.attention == "auto":
        raise UserError('model.strict_attention is for a backend that model.attention names; "auto" takes any')
    if not config.objectives:
        raise UserError("objectives is empty: there is nothing to train")
    towers = {**config.model.encoders, **({"fusion": config.model.fusion} if config.model.fusion else {})}
    for name, tower in towers.items():
        path = f"model.{'' if name == 'fusion' else 'encoders.'}{name}"
        _check_tower(path, tower)
        if isinstance(tower, c.Conformer) and tower.augment:
            check_speech_augmentation(tower.augment, tower.front_end, f"{path}.augment")
        if isinstance(tower, c.Vectors) and name in TAKEN:
            raise UserError(f"{path}: '{name}' is not for a stream of vectors; choose another name")
    if config.data.prefixes and (
        config.data.tokenizer is None or isinstance(config.data.source, c.SpokenEasyVQA | c.OwnSource)
    ):
        raise UserError("data.prefixes are for texts of a collection or a mixture, and need data.tokenizer")
    if config.data.image_augmentation:
        _check_image_augmentation(config.data.image_augmentation)
    if mixing := config.data.image_mixing:
        answers = isinstance(config.objectives.get("answer"), c.Classification)
        if not answers or any("image" not in subset or "+" in subset for subset in config.data.subsets):
            raise UserError(
                "data.image_mixing is for pictures alone that are classified: data.subsets must be 'image', and "
                "objectives.answer a Classification"
            )
        for key in ("mixup", "cutmix"):
            if getattr(mixing, key) == 0:
                raise UserError(f"data.image_mixing.{key} is 0; it must be above 0, or None to be off")
    if config.data.speed and not (config.data.speed.speeds and all(0.5 <= s <= 2 for s in config.data.speed.speeds)):
        raise UserError(f"data.speed.speeds is {config.data.speed.speeds}; name speeds between 0.5 and 2")
    _check_fusion(config.model)
    modalities = set(config.model.encoders)
    known = {*modalities, "transcript", "target", "examples"}
    for name in config.data.rows:
        if name not in known:
            raise UserError(f"data.rows.{name} is no stream of this model; there are {', '.join(sorted(known))}")
    if "examples" not in config.data.rows:
        raise UserError("data.rows.examples is not set: how many examples a row may hold")
    for place, subsets in (("data.subsets", config.data.subsets), ("evaluation.subsets", config.evaluation.subsets)):
        for subset in subsets:
            unknown = [name for name in subset.split("+") if name not in modalities]
            if unknown:
                raise UserError(f"{place}: '{subset}' names '{unknown[0]}'; the modalities are {', '.join(modalities)}")
        if len({frozenset(subset.split("+")) for subset in subsets}) < len(subsets):
            raise UserError(f"{place} names a subset twice, in whichever order: {', '.join(subsets)}")
    for name, head in config.model.heads.items():
        if isinstance(head, c.Contrast):
            if not len(head.between) == len(set(head.between)) == 2 or not modalities.issuperset(head.between):
                raise UserError(f"model.heads.{name}.between={head.between} does not name two encoders")
        elif isinstance(head, c.AttentionDecoder):
            if not head.reads or not modalities.issuperset(head.reads):
                raise UserError(f"model.heads.{name}.reads={head.reads} does not name encoders")
            _check_tower(f"model.heads.{name}.decoder", head.decoder)
        elif head.reads == "fused" and config.model.fusion is None:
            raise UserError(
                f"model.heads.{name} reads 'fused', but model.fusion is None; choose one: CrossAttention, ..."
            )
        elif head.reads not in {*modalities, "fused"}:
            raise UserError(f"model.heads.{name}.reads='{head.reads}' is neither an encoder nor 'fused'")
        elif head.reads == "fused" and isinstance(head, c.TransducerDecoder):
            raise UserError(
                f"model.heads.{name}.reads is 'fused', but a TransducerDecoder needs the tokens of an encoder"
            )
        elif isinstance(head, c.Denoiser) and not isinstance(config.model.encoders.get(head.reads), c.SpeechEncoder):
            raise UserError(f"model.heads.{name}.reads='{head.reads}' is no speech encoder, which a Denoiser needs")
        elif isinstance(getattr(head, "pool", None), c.ClassPool) and not getattr(
            config.model.encoders.get(head.reads), "class_token", True
        ):
            raise UserError(
                f"model.heads.{name}.pool is a ClassPool, but model.encoders.{head.reads} has no class_token"
            )
        elif head.reads == "fused" and getattr(head, "pool", None):
            raise UserError(f"model.heads.{name}.pool is set, but the fusion gives one vector per example already")
        if isinstance(pool := getattr(head, "pool", None), c.AttentionPool):
            width = config.model.encoders[head.reads].width
            if width % pool.heads:
                raise UserError(f"model.heads.{name}.pool.heads={pool.heads} do not divide the width of {width}")
        if isinstance(head, c.PatchDecoder):
            _check_tower(f"model.heads.{name}", head)
            if head.width % 4:
                raise UserError(
                    f"model.heads.{name}.width={head.width} does not divide into the 4 parts of its positions"
                )
    for name, mask in config.model.masked.items():
        _check_masked(name, mask, config.model)
        if name not in config.objectives:
            raise UserError(f"model.masked.{name} hides what nothing learns to predict: there is no objectives.{name}")
    for name, objective in config.objectives.items():
        if name not in config.model.heads:
            raise UserError(f"objectives.{name} has no head of that name in model.heads")
        _check_objective(name, objective, config)
    if config.weighting and any(isinstance(objective, c.SISDR) for objective in config.objectives.values()):
        raise UserError(
            f"weighting is {type(config.weighting).__name__}, but SISDR falls below 0, which it cannot weigh"
        )
    if isinstance(config.weighting, c.GradNorm):
        parts = [*(["fusion"] if config.model.fusion else []), *(f"encoders.{name}" for name in modalities)]
        if config.weighting.shared not in parts:
            raise UserError(f"weighting.shared='{config.weighting.shared}' is none of {', '.join(sorted(parts))}")
    for place in config.initial:
        room, _, name = place.partition(".")
        known = {"encoders": config.model.encoders, "heads": config.model.heads}
        if name not in known.get(room, ()):
            raise UserError(f"initial: '{place}' is no part of the model; write encoders.NAME or heads.NAME")
    if config.data.batch_rows % config.optimizer.accumulation:
        raise UserError(
            f"data.batch_rows={config.data.batch_rows} does not divide into "
            f"optimizer.accumulation={config.optimizer.accumulation} micro-batches"
        )


def _check_fusion(model: c.Multimodal) -> None:
    fusion = model.fusion
    if isinstance(fusion, c.FiLM) and fusion.by not in model.encoders:
        raise UserError(f"model.fusion.by='{fusion.by}' is no modality; there are {', '.join(model.encoders)}")
    if isinstance(fusion, c.Bottleneck) and fusion.bottlenecks and fusion.layers < 2:
        raise UserError("model.fusion.layers is 1, but bottlenecks pass nothing on before the second layer")
    if isinstance(fusion, c.MixtureOfExperts) and fusion.chosen > fusion.experts:
        raise UserError(f"model.fusion.chosen={fusion.chosen} is more than its {fusion.experts} experts")


def _check_tower(path: str, tower: Any) -> None:
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


def _check_image_augmentation(chosen: c.ImageAugmentation) -> None:
    for key, low, high in (("least_area", 0, 1), ("aspect", 1, 10), ("flip", 0, 1), ("magnitude", 0, 10)):
        value = getattr(chosen, key)
        if value is not None and not low <= value <= high:
            raise UserError(f"data.image_augmentation.{key} is {value}; it must be between {low} and {high}")


def _check_masked(name: str, mask: Any, model: c.Multimodal) -> None:
    """That there is something to hide, and a head that can predict it."""
    head, encoder = model.heads.get(name), model.encoders.get(mask.reads)
    kind = {
        c.MaskedText: c.Transformer,
        c.MaskedPatches: c.ViT,
        c.RandomProjectionQuantizer: c.Conformer,
        c.NoisySpeech: c.SpeechEncoder,
    }[type(mask)]
    if not isinstance(encoder, kind):
        names = getattr(kind, "__name__", "speech encoder")
        raise UserError(f"model.masked.{name}.reads='{mask.reads}' is no encoder of the kind {names}")
    if head is None:
        raise UserError(f"model.masked.{name}: there is no head of that name to predict what is hidden")
    if getattr(head, "reads", None) != mask.reads:
        raise UserError(f"model.heads.{name} must read '{mask.reads}', of which model.masked.{name} hides a part")
    if getattr(head, "pool", None):
        raise UserError(f"model.heads.{name}.pool gives one vector per example, but every hidden token has a label")
    augment = getattr(encoder, "augment", None)
    if isinstance(mask, c.NoisySpeech) and augment:
        raise UserError(
            f"model.encoders.{mask.reads}.augment changes samples that model.heads.{name} does not see; let "
            f"model.masked.{name}.by change them"
        )
    if isinstance(mask, c.RandomProjectionQuantizer) and augment and augment.masks:
        raise UserError(
            f"model.encoders.{mask.reads}.augment.masks hide what the labels of model.masked.{name} are made of; leave "
            "them out"
        )
    if isinstance(mask, c.MaskedPatches) and encoder.max_patches and encoder.positions == "learned":
        raise UserError(
            f"model.encoders.{mask.reads}.positions are learned for the grid of a whole picture, of which "
            f"model.masked.{name} hides a part; choose sincos or rotary"
        )
    if name in TAKEN or name in model.encoders:
        raise UserError(f"model.masked.{name}: '{name}' is the name of a stream; give the head another")
    if any(other != name and type(m) is type(mask) and m.reads == mask.reads for other, m in model.masked.items()):
        raise UserError(f"model.masked.{name}: another {type(mask).__name__} reads '{mask.reads}' already")
    if isinstance(mask, c.MaskedText) and max(mask.vocabulary, mask.mask + 1) > encoder.vocabulary:
        raise UserError(
            f"model.masked.{name} puts ids up to {max(mask.vocabulary - 1, mask.mask)} into a text, but "
            f"model.encoders.{mask.reads}.vocabulary is {encoder.vocabulary}"
        )
    if isinstance(mask, c.NoisySpeech):
        if not isinstance(head, c.Denoiser):
            raise UserError(f"model.heads.{name} must be a Denoiser, to predict what model.masked hides")
        if mask.by.masks or not any(vars(mask.by).values()):
            raise UserError(f"model.masked.{name}.by must change the samples, and has no use for masks of features")
        check_speech_augmentation(mask.by, encoder.front_end, f"model.masked.{name}.by")
        return
    needed = {
        c.MaskedText: lambda: mask.vocabulary,
        c.MaskedPatches: lambda: encoder.patch**2 * 3,
        c.RandomProjectionQuantizer: lambda: mask.codes,
    }[type(mask)]()
    if isinstance(mask, c.MaskedPatches) != isinstance(head, c.PatchDecoder) or head.outputs != needed:
        which = "a PatchDecoder" if isinstance(mask, c.MaskedPatches) else "a Head or Vocabulary"
        raise UserError(f"model.heads.{name} must be {which} of {needed} outputs, to predict what model.masked hides")


def _check_context(config: c.Experiment) -> None:
    """That the tokens of every row can be divided as the mesh says: what could not be would be computed by all, in silence."""
    for name, room in config.data.rows.items():
        step = config.mesh.context * getattr(config.model.encoders.get(name), "subsampling", 1)
        if config.mesh.context > 1 and name != "examples" and room % step:
            raise UserError(
                f"data.rows.{name}={room} does not divide among mesh.context={config.mesh.context} devices; write "
                f"{max(1, round(room / step)) * step}"
            )


def _check_objective(name: str, objective: Any, config: c.Experiment) -> None:
    """That an objective fits its head and the labels of its name."""
    kind, head = type(objective).__name__, config.model.heads[name]
    contrastive = isinstance(objective, c.SigLIP | c.CLIP)
    fitting = {
        c.Contrast: (c.SigLIP, c.CLIP),
        c.Vocabulary: (c.Sequence,),
        c.AttentionDecoder: (c.Sequence,),
        c.TransducerDecoder: (c.Transducer,),
        c.Denoiser: (c.SISDR,),
    }
    others = (c.Classification, c.MultiLabel, c.CTC, c.Sequence, c.Regression)
    if not isinstance(objective, fitting.get(type(head), others)):
        raise UserError(f"objectives.{name} is {kind}, which cannot read model.heads.{name}, a {type(head).__name__}")
    if contrastive and head.limit is not None and head.scale > head.limit:
        raise UserError(f"model.heads.{name}.scale={head.scale} is more than its limit of {head.limit}")
    if isinstance(objective, c.CLIP) and head.limit is None:
        raise UserError(f"model.heads.{name}.limit is not set; CLIP keeps the scale of its logits below 100")
    if contrastive and not any(set(head.between) <= set(subset.split("+")) for subset in config.data.subsets):
        raise UserError(f"objectives.{name} compares {' and '.join(head.between)}, but none of data.subsets shows both")
    if contrastive and config.optimizer.accumulation > 1:
        raise UserError(
            f"optimizer.accumulation={config.optimizer.accumulation}, but objectives.{name} compares all examples of a "
            "batch, and micro-batches would not see each other; set it to 1 and divide data.batch_rows among more devices"
        )
    if contrastive:
        return  # no labels
    if isinstance(head, c.AttentionDecoder | c.TransducerDecoder):
        _check_writer(name, head, objective, config)
        return
    if isinstance(objective, c.CTC | c.Sequence) and (getattr(head, "pool", None) or head.reads == "fused"):
        one = f"pool of '{head.reads}'" if head.reads != "fused" else "fusion"
        raise UserError(
            f"objectives.{name} is {kind}, which needs an output for every token; a {one} gives one per example"
        )
    if name in config.model.masked:  # its labels are what was hidden
        wanted = {c.PatchDecoder: c.Regression, c.Denoiser: c.SISDR}.get(type(head), c.Sequence)
        if not isinstance(objective, wanted):
            raise UserError(f"objectives.{name} must be {wanted.__name__}, for what model.masked.{name} hides")
        if isinstance(objective, c.Sequence) and objective.next_token:
            raise UserError(
                f"objectives.{name}.next_token is True, but its labels are hidden tokens, not next ones: set False"
            )
        return
    if isinstance(head, c.PatchDecoder):
        raise UserError(f"model.heads.{name} is a PatchDecoder: let model.masked.{name} be MaskedPatches")
    if isinstance(head, c.Denoiser):
        raise UserError(f"objectives.{name} has no labels: let model.masked.{name} be a NoisySpeech")
    if name not in ("answer", *config.data.rows):
        raise UserError(f"objectives.{name} has no labels: name it 'answer' or one of {', '.join(config.data.rows)}")
    if isinstance(objective, c.Classification | c.MultiLabel | c.Regression) != (name == "answer"):
        raise UserError(
            f"objectives.{name} cannot be {kind}: 'answer' has one label per example, every other stream a sequence of them"
        )
    if isinstance(objective, c.Sequence) and head.reads != name:
        raise UserError(
            f"objectives.{name} has a label for each token of '{name}', but model.heads.{name} reads '{head.reads}'"
        )
    encoder = config.model.encoders.get(head.reads)
    if isinstance(objective, c.Sequence) and objective.next_token and not getattr(encoder, "causal", True):
        raise UserError(
            f"objectives.{name} predicts the next token, which model.encoders.{head.reads} sees; set its causal to True"
        )
    if name == "answer" and head.reads != "fused" and not head.pool:
        raise UserError(f"model.heads.answer reads the tokens of '{head.reads}'; set its pool, or read 'fused'")


def _check_writer(name: str, head: Any, objective: Any, config: c.Experiment) -> None:
    """That what a head writes is in the rows, and stands where the objective expects it."""
    if head.writes not in config.data.rows:
        raise UserError(f"model.heads.{name}.writes='{head.writes}', but data.rows has no room for it")
    if isinstance(objective, c.Sequence) and objective.next_token:
        raise UserError(
            f"objectives.{name}.next_token is True; a decoder's labels are the next tokens already: set False"
        )
    if isinstance(head, c.AttentionDecoder):
        decoder, longest = head.decoder, config.data.rows[head.writes] + 1
        if decoder.positions == "learned" and decoder.length < longest:
            raise UserError(
                f"model.heads.{name}.decoder.length={decoder.length}, but a text and its end may take {longest} tokens"
            )
        if not decoder.cross_attention:
            raise UserError(f"model.heads.{name}.decoder.cross_attention is False, but it has to read the encoders")


def _check_numbers(config: c.Experiment) -> None:
    values = c.flat(config)
    for path, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and not path.startswith(FREE):
            least = next((low for end, low in AT_LEAST.items() if path.endswith(end)), 1 if type(value) is int else 0.0)
            if value < least:
                raise UserError(f"{path} is {value}; it must be at least {least}")
            if value >= 1 and path.rsplit(".", 1)[-1] in SHARES:
                raise UserError(f"{path} is {value}; it must be less than 1")
            if value > 1 and path.rsplit(".", 1)[-1] in AT_MOST_ONE:
                raise UserError(f"{path} is {value}; it must be at most 1")
            most = values.get(path.replace("minimum_", "maximum_"), value)
            if value > most:
                raise UserError(f"{path} is {value}, which is more than {path.replace('minimum_', 'maximum_')}={most}")


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
