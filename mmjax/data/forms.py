"""Translates rows of other formats to the fields of a `Record`: Lhotse cuts, NeMo lines, LLaVA conversations.

A field that changes the meaning of a row is either applied, or an error. docs/data.md lists these fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError

CUTS = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")  # Lhotse's classes
SPEAKERS = ("human", "user"), ("gpt", "assistant")  # names of the asker and of the answerer in LLaVA's rows
SLACK = 0.1  # seconds by which Lhotse supervisions may overlap or exceed their cut, since times are rounded


def translated(
    row: Mapping[str, Any], name: str, columns: Mapping[str, str], turn: int | None = None, whole: bool = False
) -> dict[str, Any]:
    """Renames the fields of a row of a known format to those of `Record`; returns other rows unchanged.

    Args:
      columns: the user's names of fields.
      turn: index of the turn in a conversation; None: the conversation must have only one.
      whole: conversations are read as a whole (`mmjax.data.conversation`), and unchanged here.

    Raises:
      UserError: the row requests something that is not supported.
    """
    if row.get("type") in CUTS or ("recording" in row and "supervisions" in row):
        return _from_cut(row, name)
    if "recording_id" in row and not {"speech", "audio", "audio_filepath"} & row.keys():
        raise UserError(f"{name} is a Lhotse supervision without its recording; make cuts of both: lhotse cut simple")
    if "audio_filepath" in row:
        row = _from_nemo(row, name, columns)
    if "conversations" in row and not whole:
        row = _from_conversation(row, name, turn)
    return dict(row)


def _from_cut(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Reads a Lhotse cut of one recording: its part, its channels, and the texts of its supervisions in order of time.

    Times of supervisions are relative to the cut's beginning (https://lhotse.readthedocs.io/en/latest/cuts.html).
    """
    if row.get("type") in ("MixedCut", "PaddingCut"):
        raise UserError(
            f"{name} is a Lhotse {row['type']}, and mixing while reading is not supported; save it: cuts.save_audios"
        )
    try:
        recording, supervisions = row["recording"], row.get("supervisions") or []
        if recording.get("transforms"):
            raise UserError(
                f"{name}: its recording has transforms, which are not applied here; save it: cuts.save_audios"
            )
        source, channels = _source(recording, row.get("channel"), name)
        cut = {"name": row["id"], "speech": source, "start": row.get("start", 0.0), "seconds": row["duration"]}
        texts = [one.get("text") for one in _in_order(supervisions, row, name)]
        languages = {one["language"] for one in supervisions if one.get("language")}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{name} is not a cut of one recording in one file") from None
    if len(languages) > 1:
        raise UserError(
            f"{name}: its supervisions are in several languages ({', '.join(sorted(languages))}); cut it: cuts.trim_to_supervisions"
        )
    missing = texts.count(None)
    if 0 < missing < len(texts):
        raise UserError(
            f"{name} has texts for only {len(texts) - missing} of its {len(texts)} supervisions, so they are no transcript of the "
            "whole cut; cut it: cuts.trim_to_supervisions"
        )
    used = {"id", "type", "start", "duration", "channel", "recording", "supervisions"}
    cut |= {key: value for key, value in row.items() if key not in used}
    cut |= {"channels": channels} if channels is not None else {}
    cut |= {"transcript": " ".join(filter(None, texts))} if len(texts) > missing else {}
    return cut | ({"language": languages.pop()} if languages else {})


def _source(recording: Mapping[str, Any], channel: Any, name: str) -> tuple[str, list[int] | None]:
    """The file with a cut's channels, and the channels' numbers in that file (None: all)."""
    wanted = channel if isinstance(channel, list) else None if channel is None else [channel]
    sources = recording["sources"]
    if len(sources) > 1 and wanted is not None:
        sources = [one for one in sources if set(wanted) <= set(one["channels"])]
    if len(sources) != 1:
        raise UserError(
            f"{name} is not a cut of one recording in one file: its channels are in {len(recording['sources'])} files"
        )
    (source,) = sources
    if source["type"] != "file":
        raise UserError(
            f"{name}: its recording is of the type '{source['type']}', not a file; save it: cuts.save_audios"
        )
    there = source.get("channels")
    if wanted is None or there is None:
        return source["source"], wanted
    if not set(wanted) <= set(there):
        raise UserError(f"{name} uses channel {channel}, but its recording has the channels {there}")
    return source["source"], [there.index(one) for one in wanted]


def _in_order(supervisions: list[Mapping[str, Any]], cut: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Sorts supervisions by time; checks that they do not overlap, and lie in the cut and in its channels."""
    ordered = sorted(supervisions, key=lambda one: one.get("start", 0.0))
    ends = [one.get("start", 0.0) + one.get("duration", 0.0) for one in ordered]
    channel = cut.get("channel")
    if channel is not None:
        ours = set(channel) if isinstance(channel, list) else {channel}
        for one in ordered:
            theirs = one.get("channel", channel)
            if not set(theirs if isinstance(theirs, list) else [theirs]) <= ours:
                raise UserError(f"{name}: a supervision is for channel {theirs}, but the cut uses {channel}")
    for one, end in zip(ordered, ends, strict=True):
        if one.get("start", 0.0) < -SLACK or end > cut["duration"] + SLACK:
            raise UserError(
                f"{name}: a supervision extends from {one.get('start', 0.0):.2f} to {end:.2f} s, partly outside the cut of "
                f"{cut['duration']:.2f} s; cut along them: cuts.trim_to_supervisions"
            )
    for following, end in zip(ordered[1:], ends, strict=False):
        if following.get("start", 0.0) < end - SLACK:
            raise UserError(f"{name}: its supervisions overlap in time; cut along them: cuts.trim_to_supervisions")
    return ordered


def _from_nemo(row: Mapping[str, Any], name: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Reads a line of a NeMo manifest; `mmjax.data.record` handles its "text", which is the transcript."""
    row = dict(row)
    if "text_filepath" in row and not {"text", "transcript"} & row.keys():
        raise UserError(f"{name}: its text is in another file (text_filepath), which is not read; write it as text")
    target = row.get("target_lang")
    if target is not None and "text" not in columns:
        source = row.get("source_lang", target)
        if source != target:
            raise UserError(
                f"{name} translates {source} to {target}, so its text is not a transcript; set its meaning: "
                "columns={'text': 'target', 'target_lang': 'language'}"
            )
        row.setdefault("language", target)
        for key in ("source_lang", "target_lang"):
            row.pop(key, None)
    return row


class Turns:
    """Maps example numbers to rows and turns, for rows that hold conversations of several turns.

    Args:
      counts: number of examples of each row.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray):
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, index: int) -> tuple[int, int]:
        """The row of an example, and its turn in the row, both counted from 0."""
        row = int(np.searchsorted(self._ends, index, side="right"))
        return row, index - (int(self._ends[row - 1]) if row else 0)


def answers(row: Any) -> int:
    """The number of examples of a row: a conversation has one for each answer."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    return max(len(turns) // 2, 1) if isinstance(turns, list) else 1


def _from_conversation(row: Mapping[str, Any], name: str, turn: int | None) -> dict[str, Any]:
    """Reads a turn of a LLaVA row: the target is the answer, the text is everything before it, one line per turn."""
    try:
        turns = [(one["from"], one["value"].strip()) for one in row["conversations"]]
        if not turns or len(turns) % 2 or any(who not in SPEAKERS[i % 2] for i, (who, _) in enumerate(turns)):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{name} is not a conversation that alternates questions and answers") from None
    if turn is None and len(turns) > 2:
        raise UserError(
            f"{name} holds a conversation of {len(turns)} turns; write a sample for each answer, or use a .jsonl list"
        )
    said = [value for _, value in turns[: 2 * (turn or 0) + 2]]
    for kind in ("image", "audio"):
        mark, listed = f"<{kind}>", row.get(kind, row.get(f"{kind}s"))
        count, marks = len(listed) if isinstance(listed, list) else 1, sum(value.count(mark) for value in said)
        if marks > count:
            raise UserError(f"{name} has {marks} times {mark}, but its row names {count} in '{kind}'")
        said = [value.replace(mark, "").strip() for value in said]
    if "video" in row:
        raise UserError(f"{name} asks about a video, which is not supported; save a picture of it")
    found = {"text": "\n".join(said[:-1]), "target": said[-1]}
    return {key: value for key, value in row.items() if key != "conversations"} | found
