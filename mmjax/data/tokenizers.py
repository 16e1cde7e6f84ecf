"""The tokenizer parts of a config."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from mmjax.data import hugging_face_tokenizer, text
from mmjax.data.fields import USUAL, Fields
from mmjax.data.source import Source
from mmjax.errors import UserError, nearest
from mmjax.tree import part


@part
class TokenizerPart:
    """The base class of tokenizer parts."""

    kind = "tokenizer"

    def open(self, source: Source, directory: Path, fields: Fields = USUAL) -> text.Tokenizer:
        """The tokenizer.

        Args:
          source: the source of the texts.
          directory: folder of trained tokenizers.
          fields: the texts to read.

        Raises:
          UserError: the tokenizer cannot be read or trained, or lacks a special token.
        """
        raise NotImplementedError


@part
class SentencePiece(TokenizerPart):
    """A sentencepiece model (Kudo and Richardson 2018, arXiv:1808.06226), trained on the texts or loaded."""

    vocabulary: int = 1000  # number of pieces
    file: str | None = None  # a trained model; None: train one on the texts of the training split
    byte_fallback: bool = True  # encode characters that no piece covers in bytes; uses 256 pieces
    normalisation: Literal["nmt_nfkc_cf", "nmt_nfkc", "nfkc_cf", "nfkc", "identity"] = "nmt_nfkc"
    # Special tokens for `Data.prefixes`, such as "<fr>"; with `file`, special tokens that the model must have.
    special: tuple[str, ...] = ()
    # For conversations: chatml, llama3, gemma, plain, or a file; None: tokenizer_config.json or chat_template.jinja
    # beside the file.
    chat_template: str | None = None
    # What the template is given besides the messages, such as {"enable_thinking": False} for Qwen3.
    template_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=dict)

    def open(self, source: Source, directory: Path, fields: Fields = USUAL) -> text.Tokenizer:
        if self.file is not None:
            return self._loaded(self.file)
        digest, texts = learnable(source, directory, fields)
        identity = [self.vocabulary, self.byte_fallback, self.normalisation, *self.special, digest]
        path = directory / "tokenizers" / f"{hashlib.sha256(repr(identity).encode()).hexdigest()[:24]}.model"
        if not path.is_file():
            options = {name: getattr(self, name) for name in ("normalisation", "byte_fallback", "special")}
            text.Tokenizer.train(sorted(texts()), self.vocabulary, **options).save(path)
        return text.SentencePieceTokenizer.load(path, self.chat_template, self.template_options)

    def _loaded(self, file: str) -> text.Tokenizer:
        tokenizer = text.SentencePieceTokenizer.load(file, self.chat_template, self.template_options)
        for name in self.special:
            if name not in tokenizer.special:
                near = nearest(name, tokenizer.special) if tokenizer.special else ""
                raise UserError(f"data.tokenizer.special: {file} has no control piece '{name}'{near}")
        return tokenizer


def learnable(source: Source, directory: Path, fields: Fields = USUAL) -> tuple[str, Callable[[], set[str]]]:
    """The identity of the training split's texts, and a function that reads them.

    Raises:
      UserError: the source cannot be read. The function raises it if there is no text.
    """
    parts = source.texts(directory, fields)

    def texts() -> set[str]:
        if found := {text for part in parts for text in part.gather()} - {""}:
            return found
        unread = ", ".join(repr(name) for part in parts for name in part.unread)
        others = f"; nothing reads its columns {unread}: is one of them the text? See columns= of lists and tables in docs/data.md"
        raise UserError(
            f"data.tokenizer is set, but the training split has no text to train it on{others if unread else ''}"
        )

    return repr([part.identity for part in parts]), texts


@part
class HuggingFaceTokenizer(TokenizerPart):
    """A tokenizer of the library `tokenizers`."""

    file: str  # a tokenizer.json
    add_special_tokens: bool = True  # add the post-processor's tokens to input texts: [CLS] ... [SEP]
    # For conversations: chatml, llama3, gemma, plain, or a file; None: tokenizer_config.json or chat_template.jinja
    # beside the file.
    chat_template: str | None = None
    # What the template is given besides the messages, such as {"enable_thinking": False} for Qwen3.
    template_options: Mapping[str, bool | int | str] = dataclasses.field(default_factory=dict)

    def open(self, source: Source, directory: Path, fields: Fields = USUAL) -> text.Tokenizer:
        return hugging_face_tokenizer.HuggingFaceTokenizer.load(
            self.file, self.chat_template, self.template_options, add_special_tokens=self.add_special_tokens
        )
