"""Compares speech encoders with their references: front end, encoder and CTC head separately."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.data.layout import Layout, Rows
from mmjax.errors import UserError
from mmjax.interchange.rules import moved_first
from mmjax.models.texts import to_ids

Pairs = dict[str, list[tuple[Any, Any]]]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The reference's computations; each function takes and returns arrays of one recording.

    Attributes:
      frames: samples [N] -> [T, F], the input of the encoder's blocks, without padding.
      encode: samples [N] -> tokens [S, W], computed from these frames.
      logits: samples [N] -> logits [S, V] of the CTC head; None if there is no such head.
      blank: the class of the blank in `logits`.
    """

    frames: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray] | None = None
    blank: int | None = None


class Given:
    """Replaces a front end where the frames are already computed."""

    def __call__(self, frames: Any) -> Any:
        return frames


def recordings(lengths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """Noise of the given numbers of samples, with a level that varies over 40 dB.

    (The features of stationary noise have little variance over time; normalising by it would amplify rounding errors.)
    """
    return [
        (0.03 * 10 ** np.sin(np.arange(n) / 2000) * np.random.default_rng([seed, n]).standard_normal(n)).astype(
            np.float32
        )
        for n in lengths
    ]


def layout_for(part: Any, room: int) -> Layout:
    """A layout for the encoder with rows of `room` hops, as in training."""
    pad = part.subsampling * part.length if getattr(part, "pad_to_length", False) else None
    front_end = part.front_end
    geometry = dict(hop=front_end.hop, window=front_end.window, align=part.subsampling, pad=pad)
    return Layout.of({"speech": room, "examples": room}, geometry={"speech": geometry})


def packed(part: Any, heard: list[np.ndarray]) -> Any:
    """Recordings packed into one row: [1, T, hop]."""
    import jax
    import jax.numpy as jnp

    unlimited = layout_for(part, 1)
    room = sum(-(-len(unlimited.streams["speech"].cut(one)[0]) // part.subsampling) * part.subsampling for one in heard)
    layout = layout_for(part, room)
    rows = Rows(layout, 1)
    for number, samples in enumerate(heard):
        rows.write(0, {"speech": layout.streams["speech"].cut(samples), "examples": (np.array([number]), np.zeros(1))})
    return jax.tree.map(jnp.asarray, rows.batch["speech"])


def compare_speech(
    part: Any, parameters: Mapping[str, np.ndarray], heard: list[np.ndarray], reference: Reference
) -> Pairs:
    """Pairs of our and their outputs: "front_end" and "ids" for the samples, "encoder" and "head" for the same frames.

    "ids" are the ids of their vocabulary on the best path of CTC, with repetitions merged and blanks removed.

    Raises:
      UserError: the front ends produce different numbers of frames.
    """
    import jax

    from mmjax.interchange.convert import tree
    from mmjax.stream import only_tokens

    module, params = part, {"params": tree(dict(parameters), "encoder")}
    row = packed(part, heard)
    frames = jax.jit(lambda x: module.front_end.apply({}, only_tokens(x)))(row)
    theirs = [reference.frames(samples) for samples in heard]
    front_end = _frames_beside(frames, theirs, part.subsampling)
    same = frames._replace(features=_in_place(frames, theirs))
    tokens = jax.jit(module.clone(front_end=Given()).apply)(params, same)
    encoder = [(a, reference.encode(x)) for a, x in zip(_examples(tokens), heard, strict=True)]
    pairs: Pairs = {"front_end": front_end, "encoder": encoder}
    if reference.logits is not None:
        whole = _examples(jax.jit(module.apply)(params, row))
        head = tree(dict(parameters), "head")["logits"]
        pairs |= _head(head, [a for a, _ in encoder], whole, [reference.logits(x) for x in heard], reference.blank)
    return pairs


def _examples(stream: Any) -> list[np.ndarray]:
    """The features of each example of one row."""
    segments = np.asarray(stream.segments[0])
    return [np.asarray(stream.features[0])[segments == number] for number in range(1, segments.max() + 1)]


def _frames_beside(frames: Any, theirs: list[np.ndarray], subsampling: int) -> list[tuple[Any, Any]]:
    pairs = []
    for ours, wanted in zip(_examples(frames), theirs, strict=True):
        if len(ours) // subsampling != len(wanted) // subsampling:  # theirs may drop an incomplete last token
            raise UserError(f"the front end makes {len(ours)} frames of a recording, but its reference {len(wanted)}")
        pairs.append((ours[: len(wanted)], wanted))
    return pairs


def _in_place(frames: Any, theirs: list[np.ndarray]) -> np.ndarray:
    """Their frames at the positions of ours in the row."""
    features, segments = np.array(frames.features), np.asarray(frames.segments[0])
    for number, one in enumerate(theirs, 1):
        features[0, np.flatnonzero(segments == number)[: len(one)]] = one
    return features


def _head(
    head: Mapping[str, np.ndarray],
    same: list[np.ndarray],
    whole: list[np.ndarray],
    theirs: list[np.ndarray],
    blank: int,
) -> Pairs:
    """Pairs of a CTC head's logits for the same frames, and of its ids for the same samples."""

    def logits(tokens):
        return tokens @ head["kernel"] + head["bias"]

    def ids(tokens):
        return to_ids(np.array(best_path(logits(tokens), 0), int), blank).tolist()

    return {
        "head": [(logits(a), moved_first(b, blank)) for a, b in zip(same, theirs, strict=True)],
        "ids": [(ids(a), best_path(b, blank)) for a, b in zip(whole, theirs, strict=True)],
    }


def best_path(logits: np.ndarray, blank: int) -> list[int]:
    """The best path of CTC for logits [S, V]: repetitions merged, blanks removed."""
    best = logits.argmax(-1)
    first = np.concatenate([[True], best[1:] != best[:-1]])
    return [int(i) for i in best[first] if i != blank]


def lengths_for(front_end: Any) -> tuple[int, int]:
    """Two numbers of samples that end within a hop: after more than half of the hop, and after its first sample."""
    return 150 * front_end.hop + 90, 200 * front_end.hop + 1
