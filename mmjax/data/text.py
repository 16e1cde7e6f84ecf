"""Text in, token ids out (sentencepiece)."""

import functools
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mmjax.errors import UserError
from mmjax.stream import BLANK

UNKNOWN = 1


class Tokenizer:
    """A sentencepiece model. Ids: 0 = padding and CTC blank, 1 = unknown, 2.. = pieces."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.serialised = model
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        if self._model.pad_id() != BLANK:
            raise UserError("the tokenizer must keep id 0 for padding (train it with `train_tokenizer`)")

    @classmethod
    @functools.cache
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from None
        except RuntimeError:
            raise UserError(f"cannot read the tokenizer {path}: it is damaged") from None

    @classmethod
    def train(
        cls,
        sentences: Iterable[str],
        vocabulary: int,
        *,
        normalisation: str = "nmt_nfkc_cf",
        byte_fallback: bool = False,
    ) -> "Tokenizer":
        """Trains a byte-pair model of `vocabulary` pieces; the same sentences give the same model.

        Letters, digits and common signs of English are always pieces, so that text nobody trained on can still be
        written; with `byte_fallback` any text can.

        Args:
          normalisation: sentencepiece's rule, by default NFKC and case-folding.
          byte_fallback: 256 of the pieces are bytes, for what no other piece covers.
        """
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocabulary,
                required_chars="abcdefghijklmnopqrstuvwxyz0123456789'-,.!?",
                normalization_rule_name=normalisation,
                byte_fallback=byte_fallback,
                pad_id=BLANK,
                unk_id=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"no tokenizer of {vocabulary} pieces can be trained on this text: {_reason(error, byte_fallback)}"
            ) from None
        return cls(model.getvalue())

    def save(self, path: Path) -> None:
        """Writes the model, whole or not at all.

        Raises:
          UserError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(self.serialised)
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"cannot write the tokenizer {path}: {error.strerror or error}") from None

    def __len__(self) -> int:
        return self._model.vocab_size()

    def encode(self, text: str) -> list[int]:
        try:
            return self._model.encode(text)
        except RuntimeError:  # lone surrogates: bytes that were no UTF-8 when Python read them
            raise UserError(f"{text!r} is not valid Unicode text") from None

    def decode(self, ids: Iterable[int]) -> str:
        return self._model.decode([int(i) for i in ids if i != BLANK])


def _reason(error: RuntimeError, byte_fallback: bool) -> str:
    """What sentencepiece means, and what to do."""
    if few := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return f"its characters{' and 256 bytes' if byte_fallback else ''} alone take {few[1]}; set a vocabulary of {few[1]} or more"
    if many := re.search(r"value <= (\d+)", str(error)):
        return f"there is too little of it; set a vocabulary of {many[1]} or less"
    return str(error)
