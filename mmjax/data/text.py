"""Tokenizers: their base class, and sentencepiece models.

Texts are encoded as the tokenizer's ids. An empty text that a model writes (a transcript, a target) is encoded as one `EMPTY`,
so that it takes a position in its stream, unlike a missing text.
"""

import abc
import codecs
import copy
import functools
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from mmjax.data import spelling
from mmjax.data.chat_template import CONFIG, NO_TEMPLATE, ChatTemplate
from mmjax.errors import UserError
from mmjax.files import write_whole
from mmjax.stream import BLANK, EMPTY

UNKNOWN = 1  # id of the unknown piece in models trained here
SPACE = "\u2581"  # sentencepiece's sign for a space
RESERVED = "\u2585"  # sentencepiece's trainer skips texts that contain this sign
LONGEST = 10_000  # bytes per training sentence; sentencepiece's trainer counts characters with 16 bits


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it holds only spaces, control characters and format characters such as U+200B."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


class Tokenizer(abc.ABC):
    """The base class of tokenizers.

    Attributes:
      serialised: content of the tokenizer's file; different tokenizers always differ in it.
      special: ids of the special tokens by name; encoding a text never produces them.
      names: the names that are special tokens in a text that a chat template wrote (`rendered`).
      chat: the chat template.
      unknown: id of the unknown token; None if there is none.
      byte_pieces: ids of the pieces that represent single bytes.
      zero: the meaning of id 0. "never": it occurs in no text; "unknown": the unknown token; "piece": an ordinary
        piece.
      blank: an id that occurs in no output text, and so can stand for the blank of CTC: 0, or, if id 0 is an ordinary
        piece, one more than the largest id.
    """

    file_name: ClassVar[str]

    serialised: bytes
    special: Mapping[str, int]
    names: frozenset[str]
    chat: ChatTemplate
    unknown: int | None
    byte_pieces: frozenset[int]
    zero: Literal["never", "unknown", "piece"]
    blank: int

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        chat_template: str | None = None,
        template_options: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> "Tokenizer":
        """Loads a tokenizer from its file; called on `Tokenizer` itself, it detects the kind.

        Args:
          chat_template: as `ChatTemplate.replaced`; None: the one beside the file, if any.
          template_options: as `ChatTemplate.given`.

        Raises:
          UserError: the file cannot be read, or is not such a tokenizer.
        """
        try:
            data = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from None
        from mmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer  # it extends this class

        kind = HuggingFaceTokenizer if data[:64].lstrip().startswith(b"{") else SentencePieceTokenizer
        chat = ChatTemplate.beside(path).replaced(chat_template).given(template_options)
        return _made(kind if cls is Tokenizer else cls, data, f"the tokenizer {path}", chat=chat, **options)

    def with_template_options(self, options: Mapping[str, Any]) -> "Tokenizer":
        """With further options for the chat template, as `ChatTemplate.given`."""
        changed = copy.copy(self)
        changed.chat = self.chat.given(options)
        return changed

    @classmethod
    def of_run(cls, directory: Path) -> "Tokenizer":
        """Loads the tokenizer from a run's directory. Imports may keep several files; the first one is that of the config."""
        names = [name for name in KEPT if (directory / name).is_file()]
        return cls.load(directory / (names[0] if names else SentencePieceTokenizer.file_name))

    @classmethod
    def in_run(cls, directory: Path) -> "Tokenizer | None":
        """`of_run`, or None if the directory has no tokenizer."""
        return cls.of_run(directory) if any((directory / name).is_file() for name in KEPT) else None

    def other_meaning(self, other: "Tokenizer") -> int | None:
        """The least id that stands for one piece here and for another piece there; None: there is none."""
        ours, theirs = self.pieces_by_id(), other.pieces_by_id()
        return min((i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i]), default=None)

    @abc.abstractmethod
    def pieces_by_id(self) -> dict[int, str]:
        """The piece of each id, or the name of a special token."""

    @abc.abstractmethod
    def spellings(self) -> list[bytes]:
        """What each id adds to a text, in UTF-8 with spaces; empty for special tokens. A character may have several ids.

        Raises:
          UserError: the tokenizer is of a kind of which this is not known.
        """

    @staticmethod
    def train(
        sentences: Iterable[str],
        vocabulary: int,
        *,
        normalisation: str = "nmt_nfkc_cf",
        byte_fallback: bool = False,
        special: Iterable[str] = (),
    ) -> "SentencePieceTokenizer":
        """Trains a byte-pair model of `vocabulary` pieces; deterministic for the same sentences.

        English letters, digits and common signs are always pieces, so that unseen English text can be written. With
        `byte_fallback`, any text can be written.

        Args:
          normalisation: sentencepiece's rule, by default NFKC and case-folding; all rules except "identity" also remove
            spaces that are not between words. "identity" with `byte_fallback` restores every text exactly.
          byte_fallback: use 256 of the pieces for bytes, which encode characters that no other piece covers.
          special: names of special tokens; they count as pieces.

        Raises:
          UserError: the vocabulary is too small or too large for the text, or a special token has a reserved name.
        """
        import sentencepiece

        model, special, as_it_is = io.BytesIO(), list(special), normalisation == "identity"
        if wrong := {"", "<pad>", "<unk>"}.intersection(special):
            raise UserError(f"{wrong.pop()!r} cannot be a special token: choose another name")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(part for sentence in sentences for part in _parts(sentence)),
                model_writer=model,
                model_type="bpe",
                vocab_size=max(vocabulary, 3 + len(special)),  # with fewer, the error would not say how many it needs
                max_sentence_length=LONGEST,
                required_chars="abcdefghijklmnopqrstuvwxyz0123456789'-,.!?",
                normalization_rule_name=normalisation,
                byte_fallback=byte_fallback,
                pad_id=BLANK,
                unk_id=UNKNOWN,
                bos_id=-1,
                eos_id=-1,
                minloglevel=2,
                **({"control_symbols": special} if special else {}),
                **({"remove_extra_whitespaces": False, "add_dummy_prefix": False} if as_it_is else {}),
            )
        except RuntimeError as error:
            raise UserError(
                f"no tokenizer of {vocabulary} pieces can be trained on this text (data.tokenizer.vocabulary): "
                f"{_reason(error, byte_fallback)}"
            ) from None
        return SentencePieceTokenizer(model.getvalue())

    @property
    def files(self) -> dict[str, bytes]:
        """The contents of the tokenizer's files by name: its own, and that of its chat template."""
        template = self.chat.serialised
        return {self.file_name: self.serialised} | ({} if template is None else {CONFIG: template})

    def save(self, path: Path) -> None:
        """Writes the tokenizer atomically, without its chat template.

        Raises:
          UserError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, self.serialised)
        except OSError as error:
            raise UserError(f"cannot write the tokenizer {path}: {error.strerror or error}") from None

    @abc.abstractmethod
    def __len__(self) -> int:
        """One more than the largest id."""

    @abc.abstractmethod
    def pieces(self, text: str) -> list[int]:
        """The piece ids of a text, without special tokens."""

    def read(self, text: str) -> list[int]:
        """The ids of an input text: its pieces, and the special tokens that the tokenizer adds around them."""
        return self.pieces(text)

    @abc.abstractmethod
    def rendered(self, text: str, marks: str) -> tuple[list[int], list[int]]:
        """The ids of a text that a chat template wrote, in which names of special tokens are special tokens.

        Args:
          marks: characters that stand between tokens; the first has the id -1, the second -2, and so on.

        Returns:
          The ids, and where each token begins in the text.
        """

    def encode(self, text: str) -> list[int]:
        """The ids of an output text. If the blank is the unknown token, unknown tokens are left out."""
        return [i for i in self.pieces(text) if i != self.blank]

    def to_write(self, text: str) -> list[int]:
        """The ids of a text that a model should write.

        A text that shows nothing (`is_blank`) gives `[EMPTY]`, which means that the model should write nothing. A text of
        which all tokens are left out gives no ids, since its correct output is unknown.
        """
        return [EMPTY] if is_blank(text) else self.encode(text)

    def reference(self, text: str) -> str:
        """The reference for metrics: the text with the tokenizer's normalisation, as a perfect model would write it.

        Characters that no piece covers stay in the reference: no model can write them, so they count as errors. The
        reference of a text that shows nothing is empty.
        """
        if is_blank(text):
            return ""
        return self._reference(text) if self.unknown in self.pieces(text) else self.decode(self.encode(text))

    @abc.abstractmethod
    def _reference(self, text: str) -> str:
        """`reference` of a text with characters that no piece covers."""

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Decodes ids to text; skips negative ids, and ids without a piece.

        Args:
          special: include the names of special tokens; otherwise they are left out.
        """
        return self._decode([int(i) for i in ids if 0 <= i < len(self)], special)

    @abc.abstractmethod
    def _decode(self, ids: list[int], special: bool) -> str:
        """Decodes valid piece ids to text."""


# Names of tokenizers' files in the directories of runs and imports.
KEPT = ("tokenizer.json", "tokenizer.model", "spiece.model")


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model; its control pieces are the special tokens.

    Ids of models trained by `Tokenizer.train`: 0 = padding, 1 = unknown, then special tokens, bytes and pieces.
    """

    file_name = "tokenizer.model"

    def __init__(self, serialised: bytes, name: str = "the tokenizer", chat: ChatTemplate = NO_TEMPLATE):
        import sentencepiece

        self.serialised, self.chat = serialised, chat
        try:
            self._model = model = sentencepiece.SentencePieceProcessor(model_proto=serialised)
            ids = range(model.vocab_size() if serialised else 0)
        except RuntimeError:
            ids = range(0)
        if not ids:
            raise UserError(f"cannot read {name}: it is damaged, or not a sentencepiece model")
        self.special = {model.id_to_piece(i): i for i in ids if i != BLANK and model.is_control(i)}
        self.names = frozenset(self.special)
        self.unknown = model.unk_id()
        self.byte_pieces = frozenset(i for i in ids if model.is_byte(i))
        self.zero = (
            "unknown" if model.is_unknown(0) else "never" if model.is_control(0) or model.is_unused(0) else "piece"
        )
        self.blank = len(ids) if self.zero == "piece" else 0
        # A model that keeps all spaces would decode a literal SPACE sign as a space; spelling the sign in bytes avoids
        # this.
        keeps_spaces = model.decode(model.encode("  a ")) == "  a "
        spelled = [model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._spelled = spelled if keeps_spaces and self.byte_pieces.issuperset(spelled) else None
        # If texts have no double spaces: the piece of a space, which is left out before a piece that begins with a space.
        single = model.decode(model.encode("a  a")) == "a a"
        self._space = model.piece_to_id(SPACE) if single else -1
        self._spaced = frozenset(i for i in ids if model.id_to_piece(i).startswith(SPACE)) if single else frozenset()

    def __len__(self) -> int:
        return self._model.vocab_size()

    def pieces_by_id(self) -> dict[int, str]:
        return {i: self._model.id_to_piece(i) for i in range(len(self))}

    def spellings(self) -> list[bytes]:
        model = self._model
        silent = {i for i in range(len(self)) if model.is_control(i) or model.is_unused(i)}
        return spelling.spelled(self.pieces_by_id(), silent, self.unknown, "Metaspace")

    def pieces(self, text: str) -> list[int]:
        try:
            if self._spelled is None or SPACE not in text:
                return self._model.encode(text)
            first, *rest = (self._model.encode(part) for part in text.split(SPACE))
            return first + [i for part in rest for i in (*self._spelled, *part)]
        except RuntimeError:  # lone surrogates, from bytes that were not valid UTF-8
            raise UserError(f"{text!r} is not valid Unicode text") from None

    def rendered(self, text: str, marks: str) -> tuple[list[int], list[int]]:
        known = self.special | {mark: -1 - number for number, mark in enumerate(marks)}
        pattern = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
        # Its name in sentencepiece before 0.2.3.
        encode = getattr(self._model, "encode_as_proto", None) or self._model.encode_as_immutable_proto
        ids, starts, place = [], [], 0
        for part in re.split(f"({pattern})", text):
            found = [(known[part], 0)] if part in known else [(one.id, one.begin) for one in encode(part).pieces]
            ids += [i for i, _ in found]
            starts += [place + start for _, start in found]
            place += len(part)
        return ids, starts

    def _reference(self, text: str) -> str:
        return self._model.decode(
            self._model.encode(text, out_type=str)
        )  # as strings, so that unknown tokens keep their text

    def _decode(self, ids: list[int], special: bool) -> str:
        ids = [i for i, after in itertools.zip_longest(ids, ids[1:]) if i != self._space or after not in self._spaced]
        if not special:
            return self._model.decode(ids)
        runs = itertools.groupby(ids, self._model.is_control)
        shown = (
            map(self._model.id_to_piece, run) if control else [self._model.decode(list(run))] for control, run in runs
        )
        return "".join(itertools.chain.from_iterable(shown))


@functools.lru_cache(8)
def _made(kind: type[Tokenizer], serialised: bytes, name: str, **options: Any) -> Tokenizer:
    """Creates a tokenizer; cached, so that splits and sources share it."""
    return kind(serialised, name, **options)


def _parts(sentence: str) -> Iterator[str]:
    """Prepares a text for sentencepiece's trainer: removes the reserved sign, and splits the text into short parts.

    Parts begin with a space where possible, since byte-pair models learn words together with the space before them.
    """
    data = sentence.replace(RESERVED, " ").encode(errors="surrogatepass")
    while len(data) > LONGEST:
        cut = data.rfind(b" ", 1, LONGEST)
        if cut < 0:  # a long word: split between two characters
            cut = next(i for i in range(LONGEST, 0, -1) if data[i] & 0xC0 != 0x80)
        yield data[:cut].decode(errors="surrogatepass")
        data = data[cut:]
    yield data.decode(errors="surrogatepass")


def _reason(error: RuntimeError, byte_fallback: bool) -> str:
    """Explains an error of sentencepiece's trainer, and its remedy."""
    if few := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        parts = "the letters a to z, digits, signs, other characters of the text" + ", 256 bytes" * byte_fallback
        fewer = f"; with byte_fallback=False, {int(few[1]) - 256} are enough" if byte_fallback else ""
        return f"{parts} and special pieces take {few[1]} already; set {few[1]} or more{fewer}"
    if many := re.search(r"value <= (\d+)", str(error)):
        return f"it is too short to learn so many; set {many[1]} or less"
    return str(error)
