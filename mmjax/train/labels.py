"""Checks before the first step that the data has the inputs and labels that a config needs."""

from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.models import AttentionDecoder, MaskedPatches, MaskedText, RandomProjectionQuantizer, SpeechEncoder, Vectors
from mmjax.objectives import CTC, Classification, MultiLabel, Regression, Sequence, Transducer
from mmjax.train.experiment import Experiment


def check_labels(config: Experiment, source: Any) -> None:
    """Checks that the data has the model's inputs and labels, and that the heads have enough outputs for them."""
    for name, encoder in config.model.encoders.items():
        if isinstance(encoder, Vectors) and name not in source.sizes:
            raise UserError(f"model.encoders has '{name}', but the data has only {', '.join(source.sizes)}")
    written = [name for name in ("text", "transcript", "target") if name in config.data.rows]
    if written and source.tokenizer is None:
        raise UserError(
            f"data.rows.{written[0]} is for text, but the data has no tokenizer; set data.tokenizer to "
            "SentencePiece(vocabulary=...), which is trained on the texts of the training split"
        )
    _check_mask(config, source.tokenizer)
    if config.data.speed and "speech" not in source.sizes:
        raise UserError("data.speed is set, but the data has no speech")
    _check_answers(config, source)
    for name, objective in config.objectives.items():
        head = config.model.heads[name]
        if isinstance(objective, Classification | MultiLabel | Regression) and name == "answer":
            if head.outputs != len(source.answers):
                raise UserError(
                    f"model.heads.{name}.outputs={head.outputs}, but there are {len(source.answers)} answers"
                )
        elif isinstance(config.model.masked.get(name), MaskedPatches | RandomProjectionQuantizer):
            pass  # the model makes these labels itself
        elif isinstance(objective, CTC | Transducer | Sequence):
            path, outputs = f"model.heads.{name}.outputs", getattr(head, "outputs", None)
            if isinstance(head, AttentionDecoder):
                path, outputs = f"model.heads.{name}.decoder.vocabulary", head.decoder.vocabulary
            writes = isinstance(objective, CTC | Transducer) or isinstance(head, AttentionDecoder)
            needed = source.tokenizer.classes if writes else len(source.tokenizer)
            if outputs < needed:
                blank = ", and the blank is one more class" if needed > len(source.tokenizer) else ""
                raise UserError(
                    f"{path}={outputs}, but the tokenizer has {len(source.tokenizer)} pieces{blank}; write {needed}"
                )
    for name, objective in config.objectives.items():
        _check_there_are_labels(name, objective, config, source)
    rate = getattr(source, "sample_rate", None)
    for name, encoder in config.model.encoders.items():
        if isinstance(encoder, SpeechEncoder) and rate and encoder.front_end.sample_rate != rate:
            raise UserError(
                f"model.encoders.{name}.front_end.sample_rate={encoder.front_end.sample_rate}, "
                f"but the data holds speech at {rate} Hz"
            )


def _check_mask(config: Experiment, tokenizer: Any) -> None:
    """Checks that the mask id of a `MaskedText` does not occur in texts."""
    if tokenizer is None or tokenizer.zero == "never":
        return
    for name, mask in config.model.masked.items():
        if isinstance(mask, MaskedText) and mask.mask == 0:
            raise UserError(
                f"model.masked.{name}.mask is 0, which is an ordinary piece in this tokenizer; use the id of a special token"
            )


def _check_answers(config: Experiment, source: Any) -> None:
    """Checks that the first answers of the data have the kind that the objective needs."""
    objective = config.objectives.get("answer")
    if objective is None:
        return
    several = isinstance(objective, MultiLabel | Regression)
    for number in range(min(8, len(source))):
        answer = source[number].answer
        if answer is None:
            continue
        if several != (np.ndim(answer) == 1):
            kind = "numbers, a list for each example" if several else "one class for each example"
            raise UserError(f"objectives.answer is {type(objective).__name__}, which reads {kind}, not {answer!r:.60}")
        if isinstance(objective, MultiLabel) and not np.isin(answer, (0, 1)).all():
            raise UserError(f"objectives.answer is MultiLabel, which reads 0 or 1 for each label, not {answer!r:.60}")


def _check_there_are_labels(name: str, objective: Any, config: Experiment, source: Any) -> None:
    """Checks that the data has labels for an objective, which would otherwise train nothing without an error."""
    head = config.model.heads[name]
    stream = getattr(head, "writes", name)
    if stream not in ("transcript", "target") or name in config.model.masked:
        return
    sizes = source.sizes.get(stream)
    if sizes is None and stream == "transcript":  # the text is also the transcript of the speech
        sizes = source.sizes.get("text")
    if sizes is None or not np.any(sizes):
        kinds = [kind for kind in ("text", "transcript", "target") if np.any(source.sizes.get(kind, 0))]
        raise UserError(
            f"objectives.{name} needs a {stream}, but no example of the data has one; its text streams are "
            f"{' and '.join(kinds) or 'none'} (a Manifest's columns can be renamed: "
            f'data.source.columns={{"text": "{stream}"}})'
        )
