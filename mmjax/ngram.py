"""The command `mmjax ngram`: trains n-gram models on the texts of files and runs, and measures them."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmjax.data.text import Tokenizer
from mmjax.decode.arpa import DAMAGE, UNKNOWN, opened, write_arpa
from mmjax.decode.backoff import Perplexities, perplexities
from mmjax.decode.kneser_ney import train
from mmjax.errors import UserError
from mmjax.files import local
from mmjax.train.build import build_source, labels_of
from mmjax.train.experiment import load


def ngram(
    places: Sequence[str],
    out: str,
    order: int = 3,
    tokenizer: str | None = None,
    words: bool = False,
    test: str | None = None,
) -> tuple[list[int], Perplexities | None]:
    """Trains an n-gram model, and writes it as an ARPA file.

    Args:
      places: of the texts (`texts_of`).
      out: the file.
      tokenizer: a run with whose tokenizer the texts are cut; None: into what spaces separate.
      words: with a tokenizer, model the words as it spells them, not its pieces.
      test: a place of other texts, to measure the model on.

    Returns:
      The number of n-grams of each order, and what was measured.
    """
    tokens_of = cut(Tokenizer.of_run(local(tokenizer, "--tokenizer")) if tokenizer else None, words)

    def sentences(place: str) -> Iterator[tuple[list[str], int]]:
        for text in texts_of(place):
            tokens, count = tokens_of(text), len(text.split())
            yield tokens, min(count, len(tokens) - 1)  # the first token is given; in a model of words, it is a word

    model = train((tokens for place in places for tokens, _ in sentences(place)), order)
    write_arpa(out, model)
    return [len(level.ids) for level in model.levels], perplexities(model, sentences(test)) if test else None


def texts_of(place: str) -> Iterator[str]:
    """The texts of a place: a file with one in each line, perhaps compressed, or RUN:SPLIT, what a run reads of a split.

    Raises:
      UserError: there is no such place, or it cannot be read.
    """
    directory, _, split = place.rpartition(":")
    if directory and (Path(directory) / "config.json").is_file():
        return _of_split(Path(directory), split)
    return _of_file(place)


def _of_split(run: Path, split: str) -> Iterator[str]:
    """The input texts and the text labels of a split that have a place in the rows of the run."""
    config = load(run / "config.json")
    source = build_source(config.data, split, run, labels_of(config))
    for number in range(len(source)):
        example = source[number]
        for name, value in {**example.inputs, **example.labels}.items():
            if name in config.data.rows and isinstance(value, str):
                yield value


def _of_file(name: str) -> Iterator[str]:
    path = local(name, "the text")
    try:
        with io.TextIOWrapper(opened(path), "utf-8-sig") as lines:
            yield from lines
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8") from None
    except DAMAGE as error:
        raise UserError(f"cannot read the text {path}: {getattr(error, 'strerror', None) or error}") from None


def cut(tokenizer: Tokenizer | None, words: bool = False) -> Callable[[str], list[str]]:
    """How a text becomes a list of words.

    Args:
      tokenizer: the words are its pieces; None: those of the text.
      words: with a tokenizer, the words are those of the text in the spelling of the tokenizer.
    """
    if tokenizer is None:
        return str.split
    if words:
        return lambda text: tokenizer.reference(text).split()
    pieces = tokenizer.pieces_by_id() | {tokenizer.unknown: UNKNOWN}
    return lambda text: [pieces[i] for i in tokenizer.pieces(text.strip())]
