"""Checks that heads, objectives and masks of a config fit each other and the streams that they read."""

from typing import Any

from mmjax.errors import UserError
from mmjax.models import (
    AttentionDecoder,
    AttentionPool,
    ClassPool,
    Conformer,
    Contrast,
    Denoiser,
    MaskedPatches,
    MaskedText,
    Multimodal,
    NoisySpeech,
    PatchDecoder,
    RandomProjectionQuantizer,
    SpeechEncoder,
    TransducerDecoder,
    Transformer,
    ViT,
    Vocabulary,
)
from mmjax.models.encoder import check_attention
from mmjax.objectives import CLIP, CTC, SISDR, Classification, MultiLabel, Regression, Sequence, SigLIP, Transducer
from mmjax.train.experiment import Experiment
from mmjax.train.weighting import GradNorm

# Reserved names, which cannot name a stream of vectors.
TAKEN = ("speech", "image", "text", "transcript", "target", "examples", "answer", "fused")


def check_objectives(config: Experiment) -> None:
    """Checks that every objective has a matching head and labels, and that every mask has an objective."""
    for name, head in config.model.heads.items():
        _check_head(name, head, config.model)
    for name, mask in config.model.masked.items():
        _check_masked(name, mask, config.model)
        if name not in config.objectives:
            raise UserError(f"model.masked.{name} hides input that no objective predicts; add objectives.{name}")
    for name, objective in config.objectives.items():
        if name not in config.model.heads:
            raise UserError(f"objectives.{name} has no head; add model.heads.{name}")
        _check_objective(name, objective, config)
    if config.weighting and any(isinstance(objective, SISDR) for objective in config.objectives.values()):
        raise UserError(
            f"weighting is {type(config.weighting).__name__}, which needs losses above 0, but SISDR can be negative"
        )
    if isinstance(config.weighting, GradNorm):
        parts = [*(["fusion"] if config.model.fusion else []), *(f"encoders.{name}" for name in config.model.encoders)]
        if config.weighting.shared not in parts:
            raise UserError(f"weighting.shared='{config.weighting.shared}' is none of {', '.join(sorted(parts))}")


def _check_head(name: str, head: Any, model: Multimodal) -> None:
    """Checks that the input of a head exists and has the kind that the head needs."""
    modalities = set(model.encoders)
    if isinstance(head, Contrast):
        if not len(head.between) == len(set(head.between)) == 2 or not modalities.issuperset(head.between):
            raise UserError(f"model.heads.{name}.between={head.between} must name two different encoders")
    elif isinstance(head, AttentionDecoder):
        if not head.reads or not modalities.issuperset(head.reads):
            raise UserError(f"model.heads.{name}.reads={head.reads} must name one or more encoders")
        check_attention(f"model.heads.{name}.decoder", head.decoder)
    elif head.reads == "fused" and model.fusion is None:
        raise UserError(
            f"model.heads.{name} reads 'fused', but model.fusion is None; set a fusion, such as CrossAttention"
        )
    elif head.reads not in {*modalities, "fused"}:
        raise UserError(f"model.heads.{name}.reads='{head.reads}' is neither an encoder nor 'fused'")
    elif head.reads == "fused" and isinstance(head, TransducerDecoder):
        raise UserError(f"model.heads.{name}.reads is 'fused', but a TransducerDecoder needs the tokens of an encoder")
    elif isinstance(head, Denoiser) and not isinstance(model.encoders.get(head.reads), SpeechEncoder):
        raise UserError(f"model.heads.{name}.reads='{head.reads}' is no speech encoder, but a Denoiser needs one")
    elif isinstance(getattr(head, "pool", None), ClassPool) and not model.encoders[head.reads].class_token:
        raise UserError(f"model.heads.{name}.pool is a ClassPool, but model.encoders.{head.reads} has no class_token")
    elif head.reads == "fused" and getattr(head, "pool", None):
        raise UserError(f"model.heads.{name}.pool is set, but the fusion already gives one vector per example")
    if isinstance(pool := getattr(head, "pool", None), AttentionPool):
        width = model.encoders[head.reads].width
        if width % pool.heads:
            raise UserError(f"model.heads.{name}.pool.heads={pool.heads} does not divide the width {width}")
    if isinstance(head, PatchDecoder):
        check_attention(f"model.heads.{name}", head)
        if head.width % 4:
            raise UserError(f"model.heads.{name}.width={head.width} must be a multiple of 4, for its positions")


def _check_masked(name: str, mask: Any, model: Multimodal) -> None:
    """Checks that the encoder of a mask fits, and that a head can predict the hidden input."""
    head, encoder = model.heads.get(name), model.encoders.get(mask.reads)
    kind = {
        MaskedText: Transformer,
        MaskedPatches: ViT,
        RandomProjectionQuantizer: Conformer,
        NoisySpeech: SpeechEncoder,
    }[type(mask)]
    if not isinstance(encoder, kind):
        names = vars(kind).get("kind", kind.__name__)
        raise UserError(f"model.masked.{name}.reads='{mask.reads}' is no encoder of the kind {names}")
    if head is None:
        raise UserError(f"model.masked.{name} has no head to predict the hidden input; add model.heads.{name}")
    if getattr(head, "reads", None) != mask.reads:
        raise UserError(f"model.heads.{name} must read '{mask.reads}', as model.masked.{name} does")
    if getattr(head, "pool", None):
        raise UserError(f"model.heads.{name}.pool gives one vector per example, but every hidden token has a label")
    augment = getattr(encoder, "augment", None)
    if isinstance(mask, NoisySpeech) and augment:
        raise UserError(
            f"model.encoders.{mask.reads}.augment changes samples that model.heads.{name} does not see; set it in "
            f"model.masked.{name}.by instead"
        )
    if isinstance(mask, RandomProjectionQuantizer) and augment and augment.masks:
        raise UserError(
            f"model.encoders.{mask.reads}.augment.masks would hide the input from which model.masked.{name} computes its "
            "labels; leave them out"
        )
    if isinstance(mask, MaskedPatches) and encoder.max_patches and encoder.positions == "learned":
        raise UserError(
            f"model.encoders.{mask.reads}.positions are learned for the grid of a whole image, but model.masked.{name} "
            "hides a part of it; choose sincos or rotary"
        )
    if name in TAKEN or name in model.encoders:
        raise UserError(f"model.masked.{name}: '{name}' is the name of a stream; choose another name for the head")
    if any(other != name and type(m) is type(mask) and m.reads == mask.reads for other, m in model.masked.items()):
        raise UserError(f"model.masked.{name}: another {type(mask).__name__} already reads '{mask.reads}'")
    if isinstance(mask, MaskedText) and max(mask.vocabulary, mask.mask + 1) > encoder.vocabulary:
        raise UserError(
            f"model.masked.{name} uses ids up to {max(mask.vocabulary - 1, mask.mask)}, but "
            f"model.encoders.{mask.reads}.vocabulary is {encoder.vocabulary}"
        )
    if isinstance(mask, NoisySpeech):
        if not isinstance(head, Denoiser):
            raise UserError(f"model.heads.{name} must be a Denoiser, to predict the input hidden by model.masked")
        if mask.by.masks or not any(vars(mask.by).values()):
            raise UserError(f"model.masked.{name}.by must augment samples, and must not mask features")
        mask.by.check(f"model.masked.{name}.by", encoder.front_end.sample_rate, encoder.front_end.hop)
        return
    needed = {
        MaskedText: lambda: mask.vocabulary,
        MaskedPatches: lambda: encoder.patch**2 * 3,
        RandomProjectionQuantizer: lambda: mask.codes,
    }[type(mask)]()
    if isinstance(mask, MaskedPatches) != isinstance(head, PatchDecoder) or head.outputs != needed:
        which = "a PatchDecoder" if isinstance(mask, MaskedPatches) else "a Head or Vocabulary"
        raise UserError(
            f"model.heads.{name} must be {which} of {needed} outputs, to predict the input hidden by model.masked"
        )


def _check_objective(name: str, objective: Any, config: Experiment) -> None:
    """Checks that an objective fits its head and its labels."""
    kind, head = type(objective).__name__, config.model.heads[name]
    contrastive = isinstance(objective, SigLIP | CLIP)
    fitting = {
        Contrast: (SigLIP, CLIP),
        Vocabulary: (Sequence,),
        AttentionDecoder: (Sequence,),
        TransducerDecoder: (Transducer,),
        Denoiser: (SISDR,),
    }
    others = (Classification, MultiLabel, CTC, Sequence, Regression)
    if not isinstance(objective, fitting.get(type(head), others)):
        raise UserError(f"objectives.{name} is {kind}, which cannot read model.heads.{name}, a {type(head).__name__}")
    if contrastive and head.limit is not None and head.scale > head.limit:
        raise UserError(f"model.heads.{name}.scale={head.scale} is more than its limit of {head.limit}")
    if isinstance(objective, CLIP) and head.limit is None:
        raise UserError(f"model.heads.{name}.limit is not set; CLIP keeps the scale of its logits below 100")
    if contrastive and not any(set(head.between) <= set(subset.split("+")) for subset in config.data.subsets):
        raise UserError(
            f"objectives.{name} compares {' and '.join(head.between)}, but no subset in data.subsets has both"
        )
    if contrastive and config.optimizer.accumulation > 1:
        raise UserError(
            f"optimizer.accumulation={config.optimizer.accumulation}, but objectives.{name} compares all examples of a "
            "batch, and a micro-batch has only some; set it to 1 and divide data.batch_rows among more devices"
        )
    if contrastive:
        return  # no labels
    if isinstance(head, AttentionDecoder | TransducerDecoder):
        _check_writer(name, head, objective, config)
        return
    if isinstance(objective, CTC | Sequence) and (getattr(head, "pool", None) or head.reads == "fused"):
        one = f"pool of '{head.reads}'" if head.reads != "fused" else "fusion"
        raise UserError(
            f"objectives.{name} is {kind}, which needs an output per token, but a {one} gives one per example"
        )
    if name in config.model.masked:  # its labels are the hidden input
        wanted = {PatchDecoder: Regression, Denoiser: SISDR}.get(type(head), Sequence)
        if not isinstance(objective, wanted):
            raise UserError(
                f"objectives.{name} must be {wanted.__name__}, to predict the input hidden by model.masked.{name}"
            )
        if isinstance(objective, Sequence) and objective.next_token:
            raise UserError(
                f"objectives.{name}.next_token is True, but its labels are the hidden tokens; set it to False"
            )
        return
    if isinstance(head, PatchDecoder):
        raise UserError(f"model.heads.{name} is a PatchDecoder, which needs model.masked.{name}=MaskedPatches")
    if isinstance(head, Denoiser):
        raise UserError(f"objectives.{name} has no labels; set model.masked.{name} to a NoisySpeech")
    if name not in ("answer", *config.data.rows):
        raise UserError(f"objectives.{name} has no labels: name it 'answer' or one of {', '.join(config.data.rows)}")
    if isinstance(objective, Classification | MultiLabel | Regression) != (name == "answer"):
        raise UserError(
            f"objectives.{name} cannot be {kind}: 'answer' has one label per example, every other stream has a sequence of labels"
        )
    if isinstance(objective, Sequence) and head.reads != name:
        raise UserError(
            f"objectives.{name} has a label for each token of '{name}', but model.heads.{name} reads '{head.reads}'"
        )
    encoder = config.model.encoders.get(head.reads)
    if isinstance(objective, Sequence) and objective.next_token and not encoder.causal:
        raise UserError(
            f"objectives.{name} predicts the next token, but model.encoders.{head.reads} is not causal; set its causal to True"
        )
    if name == "answer" and head.reads != "fused" and not head.pool:
        raise UserError(f"model.heads.answer reads the tokens of '{head.reads}'; set its pool, or read 'fused'")


def _check_writer(name: str, head: Any, objective: Any, config: Experiment) -> None:
    """Checks that data.rows has the stream that a head writes, and that the objective fits a decoder."""
    if head.writes not in config.data.rows:
        raise UserError(f"model.heads.{name}.writes='{head.writes}', but data.rows has no room for it")
    if isinstance(objective, Sequence) and objective.next_token:
        raise UserError(
            f"objectives.{name}.next_token is True, but a decoder's labels already are the next tokens; set it to False"
        )
    if isinstance(head, AttentionDecoder):
        decoder, longest = head.decoder, config.data.rows[head.writes] + 1
        if decoder.positions == "learned" and decoder.length < longest:
            raise UserError(
                f"model.heads.{name}.decoder.length={decoder.length}, but a text with its end token may have {longest} tokens"
            )
        if not decoder.cross_attention:
            raise UserError(
                f"model.heads.{name}.decoder.cross_attention is False, but the decoder must read the encoders"
            )
