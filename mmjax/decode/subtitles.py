"""Files with the times of a text: SubRip (.srt), WebVTT (.vtt), Praat's TextGrid, JSON."""

import html
import textwrap
from collections.abc import Callable, Sequence

from mmjax.decode.words import Timings, Word
from mmjax.errors import UserError
from mmjax.files import json_line

LINE = 42  # characters of a line of a subtitle
SHORTEST = 0.001  # seconds of an interval of a TextGrid


def _clock(seconds: float, sign: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{sign}{milliseconds % 1000:03}"


def _cue(segment: Word, sign: str) -> str:
    lines = "\n".join(textwrap.wrap(segment.word, LINE))
    return f"{_clock(segment.start, sign)} --> {_clock(segment.end, sign)}\n{lines}\n"


def srt(timings: Timings) -> str:
    """SubRip: a numbered subtitle for each segment."""
    return "\n".join(f"{number}\n{_cue(segment, ',')}" for number, segment in enumerate(timings.segments, 1))


def vtt(timings: Timings) -> str:
    """WebVTT (W3C, 2019): a cue for each segment."""
    cues = (_cue(segment._replace(word=html.escape(segment.word, quote=False)), ".") for segment in timings.segments)
    return "\n".join(["WEBVTT\n", *cues])


def textgrid(timings: Timings) -> str:
    """Praat's TextGrid in its long form, with the tiers "segments" and "words"."""
    tiers = {"segments": timings.segments, "words": timings.words}
    intervals = {name: _intervals(words) for name, words in tiers.items()}
    end = max([timings.duration, *(tier[-1][1] for tier in intervals.values() if tier)])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end:.3f}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, found) in enumerate(intervals.items(), 1):
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        whole = found or [(0.0, end, "")]
        whole = whole if whole[-1][1] >= end else [*whole, (whole[-1][1], end, "")]
        lines += ["        xmin = 0", f"        xmax = {end:.3f}", f"        intervals: size = {len(whole)}"]
        for place, (start, stop, text) in enumerate(whole, 1):
            lines += [
                f"        intervals [{place}]:",
                f"            xmin = {start:.3f}",
                f"            xmax = {stop:.3f}",
            ]
            lines.append('            text = "{}"'.format(text.replace('"', '""')))
    return "\n".join(lines) + "\n"


def _intervals(words: Sequence[Word]) -> list[tuple[float, float, str]]:
    """Intervals without gaps from 0 on: words, and empty texts between them. Each is at least `SHORTEST` long."""
    found, last = [], 0.0
    for word in words:
        start = max(word.start, last)
        if start - last >= SHORTEST:
            found.append((last, start, ""))
        else:
            start = last
        last = max(word.end, start + SHORTEST)
        found.append((start, last, word.word))
    return found


def json_text(timings: Timings) -> str:
    """`Timings.plain` in one line."""
    return json_line(timings.plain()) + "\n"


FORMATS: dict[str, Callable[[Timings], str]] = {
    ".srt": srt,
    ".vtt": vtt,
    ".textgrid": textgrid,
    ".json": json_text,
}


def format_of(name: str) -> Callable[[Timings], str]:
    """The format of a file by the end of its name.

    Raises:
      UserError: there is no such format.
    """
    for end, write in FORMATS.items():
        if name.lower().endswith(end):
            return write
    raise UserError(f"{name}: the name should end with .srt, .vtt, .TextGrid or .json")
