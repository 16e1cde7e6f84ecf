"""Charts as SVG texts: lines, bars, histograms, heat maps, and pictures with axes.

Ink is the colour of the text around the chart, so that charts suit light and dark pages; alone, in a file, it is black.
Colours are those of `mmjax.html`, and dashes tell lines apart, too. Each mark tells its value when one points at it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from mmjax.html import BLUE, GREEN, GREY, OCHRE, PURPLE, VERMILION

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, OCHRE, GREY)
DASHES = ("", "7 3", "2 3", "8 3 2 3")
WIDTH, HEIGHT = 540, 300  # of a chart in pixels
CHARACTER = 7  # the mean width of a character in pixels
TOP = 32  # where the area inside the axes begins
POINTS = 200  # of a line, at most; more are averaged
NAME = 30  # characters of a name that are shown
MARGIN = 96  # pixels before a picture with axes, so that the time axes of pictures agree

Points = Sequence[tuple[float, float | None]]


class Axis(NamedTuple):
    """An axis: its range, the places of its ticks, and a label with its unit."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str = ""
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the beginning and 1 at the end."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


class Frame(NamedTuple):
    """The area inside the axes, in pixels."""

    left: float
    top: float
    width: float
    height: float

    def x(self, axis: Axis, value: float) -> float:
        return self.left + self.width * axis.share(value)

    def y(self, axis: Axis, value: float) -> float:
        return self.top + self.height * (1 - axis.share(value))


# Ticks and numbers. -----------------------------------------------------------------------------------------


def linear(values: Iterable[float], label: str = "", count: int = 5, tight: bool = False, whole: bool = False) -> Axis:
    """An axis with ticks at multiples of 1, 2 or 5 times a power of ten.

    Args:
      count: about how many ticks.
      tight: the range is that of the values; otherwise it extends to the next tick.
      whole: ticks are whole numbers.
    """
    values = list(values) or [0.0, 1.0]
    low, high = min(values), max(values)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(nice for nice in (1, 2, 5, 10) if nice * power >= rough * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = (math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)) if tight else (0, 0)
    if not tight:
        first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
        low, high = first * step, last * step
    return Axis(low, high, tuple(round(number * step, 12) for number in range(first, last + 1)), label)


def logarithmic(values: Iterable[float], label: str = "") -> Axis:
    """A logarithmic axis for values above 0, with ticks at powers of ten, and at 2 and 5 times these if they are few."""
    values = list(values)
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    last += first == last
    factors = (1,) if last - first > 3 else (1, 2, 5)
    ticks = [factor * 10.0**power for power in range(first, last) for factor in factors] + [10.0**last]
    return Axis(ticks[0], ticks[-1], tuple(ticks), label, True)


def number(value: float) -> str:
    """A number for people: 0.25, 1,500, 3M, 2e-05."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


# Charts. ----------------------------------------------------------------------------------------------------


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str, title: str, *, log_scale: bool = False) -> str:
    """Lines over a common axis, with a legend.

    Args:
      series: (x, y) in the order of x, by name. A point whose y is None or not finite is a gap.
      log_scale: of y, if all values are above 0.
    """
    lines = {name: _parts(points) for name, points in series.items()}
    size = max((-(-len(part) // POINTS) for parts in lines.values() for part in parts), default=1)
    if size > 1:
        lines = {name: [_means(part, size) for part in parts] for name, parts in lines.items()}
        x_label += f" (means of {size} points)"
    points = [point for parts in lines.values() for part in parts for point in part]
    values = [y for _, y in points]
    logs = log_scale and bool(values) and min(values) > 0
    steps = [x for x, _ in points]
    x_axis = linear(steps, x_label, tight=True, whole=size == 1 and all(x == round(x) for x in steps))
    y_axis = logarithmic(values, y_label) if logs else linear(values, y_label)
    legend, top = _legend(list(series), WIDTH) if len(series) > 1 else ("", TOP)
    frame = _frame(y_axis, top, WIDTH, HEIGHT + top - TOP)
    body = [legend, _axes(frame, x_axis, y_axis)]
    for index, (name, parts) in enumerate(lines.items()):
        body.append(_line(frame, x_axis, y_axis, name, parts, index))
    return _svg(title, "".join(body), WIDTH, HEIGHT + top - TOP)


def bar_chart(
    bars: Mapping[str, float],
    value_label: str,
    title: str,
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    coloured: bool = False,
) -> str:
    """Horizontal bars from zero, one below the other, with names and values.

    Args:
      intervals: (low, high) of some of the bars, drawn as a line over the end of the bar.
      coloured: the bars have the colours of lines with these names.
    """
    intervals = intervals or {}
    axis = linear([0.0, *bars.values(), *(end for pair in intervals.values() for end in pair)], value_label)
    left = 24 + CHARACTER * max((min(len(name), NAME) for name in bars), default=0)
    room = 12 + CHARACTER * max((len(number(value)) for value in bars.values()), default=0)
    frame = Frame(left, 30, WIDTH - left - room, 22 * len(bars))
    body = [_axes(frame, axis, Axis(0, 1, ()))]
    zero = frame.x(axis, 0.0)
    for index, (name, value) in enumerate(bars.items()):
        y, end = frame.top + 22 * index, frame.x(axis, value)
        colour = COLOURS[index % len(COLOURS)] if coloured else BLUE
        low, high = intervals.get(name, (value, value))
        said = f"{name}: {number(value)}" + (f" ({number(low)} to {number(high)})" if name in intervals else "")
        body.append(_text(left - 8, y + 15, _short(name), "end"))
        body.append(
            f'<rect x="{min(zero, end):.1f}" y="{y + 3:.1f}" width="{abs(end - zero):.1f}" height="16" fill="{colour}">'
            f"<title>{escape(said)}</title></rect>"
        )
        if name in intervals:
            ends = [frame.x(axis, low), frame.x(axis, high)]
            path = f"M{ends[0]:.1f} {y + 11:.1f}H{ends[1]:.1f}" + "".join(f"M{x:.1f} {y + 6:.1f}v10" for x in ends)
            body.append(f'<path d="{path}" stroke="currentColor" stroke-width="1.5" fill="none"/>')
        body.append(_text(max(end, zero, *(frame.x(axis, x) for x in (low, high))) + 6, y + 15, number(value)))
    return _svg(title, "".join(body), WIDTH, frame.top + frame.height + 44)


def histogram(values: np.ndarray, x_label: str, title: str, y_label: str = "examples", bins: int = 30) -> str:
    """How many values [n] are in each of `bins` equal ranges."""
    counts, edges = np.histogram(values, bins=bins)
    x_axis, y_axis = linear(edges.tolist(), x_label, tight=True), linear([0.0, float(counts.max())], y_label, 4)
    frame = _frame(y_axis, TOP, WIDTH, 240)
    body = [_axes(frame, x_axis, y_axis)]
    for count, low, high in zip(counts.tolist(), edges, edges[1:], strict=False):
        left, right, y = frame.x(x_axis, low), frame.x(x_axis, high), frame.y(y_axis, count)
        body.append(
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(right - left - 1, 0.5):.1f}" fill="{BLUE}" '
            f'height="{frame.top + frame.height - y:.1f}"><title>{low:.3g} to {high:.3g}: {count:,}</title></rect>'
        )
    return _svg(title, "".join(body), WIDTH, 240)


def heat_map(
    counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], title: str
) -> str:
    """A matrix [R, C] of counts; a cell is darker, the larger its share of its row.

    Args:
      labels: what the rows and the columns are.
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[number(count) if count else "" for count in row] for row in counts]
    said = [
        [f"{number(count)} ({100 * share:.1f} % of the row)" for count, share in zip(*pair, strict=True)]
        for pair in zip(counts, shares.tolist(), strict=True)
    ]
    return _cells(shares, texts, said, rows, columns, labels, title, 34)


def value_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], labels: tuple[str, str], title: str
) -> str:
    """A matrix [R, C] of values; a cell is darker, the larger its value. NaN is an empty cell.

    Args:
      labels: what the rows and the columns are.
    """
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    shares = np.nan_to_num((values - low) / (high - low if high > low else 1.0))
    texts = [[f"{value:.3g}" if np.isfinite(value) else "" for value in row] for row in values]
    said = [[number(value) if np.isfinite(value) else "not measured" for value in row] for row in values]
    return _cells(shares, texts, said, rows, columns, labels, title, 48)


def _cells(
    shares: np.ndarray,
    texts: Sequence[Sequence[str]],
    said: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    title: str,
    size: int,
) -> str:
    """A matrix of cells.

    Args:
      shares: [R, C] how dark each cell is, 0 to 1.
      texts: in the cells; said: what each tells when one points at it.
      size: of a cell in pixels.
    """
    left = 34 + CHARACTER * max(min(len(name), NAME) for name in rows)
    below = 16 + 0.75 * CHARACTER * max(min(len(name), NAME) for name in columns)
    body, top = [], 32
    for i, name in enumerate(rows):
        body.append(_text(left - 8, top + size * i + size / 2 + 4, _short(name), "end"))
        for j, other in enumerate(columns):
            x, y, share = left + size * j, top + size * i, float(shares[i, j])
            tip = escape(f"{labels[0]} {name}, {labels[1]} {other}: {said[i][j]}")
            body.append(
                f'<g><title>{tip}</title><rect x="{x:.1f}" y="{y}" width="{size - 1}" height="{size - 1}" '
                f'fill="{_shade(share)}"/>'
            )
            ink, middle = "#ffffff" if share > 0.45 else "#1f2328", (x + size / 2 - 0.5, y + size / 2 + 4)
            body.append((_text(*middle, texts[i][j], "middle", ink) if texts[i][j] else "") + "</g>")
    bottom = top + size * len(rows)
    for j, name in enumerate(columns):
        x, y = left + size * j + size / 2, bottom + 12
        body.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="end" transform="rotate(-45 {x:.1f} {y})">{escape(_short(name))}</text>'
        )
    width, height = max(left + size * len(columns) + 16, CHARACTER * len(title) + 24), bottom + below + 26
    body.append(_text(left + size * len(columns) / 2, height - 8, labels[1], "middle"))
    body.append(_upright(14, top + size * len(rows) / 2, labels[0]))
    return _svg(title, "".join(body), width, height)


def picture_chart(
    picture: str,
    x_axis: Axis,
    y_axis: Axis,
    title: str,
    *,
    height: float = 130,
    names: Sequence[str] = (),
    smooth: bool = True,
) -> str:
    """A picture (its address) between axes, such as a spectrogram.

    Args:
      height: of the picture in pixels.
      names: of the rows of the picture from above, in place of numbers along the y axis.
    """
    frame = Frame(MARGIN, TOP, WIDTH - MARGIN - 16, height)
    body = (
        f'<image href="{picture}" x="{frame.left:.1f}" y="{frame.top}" width="{frame.width:.1f}" height="{height}" '
        f'preserveAspectRatio="none" image-rendering="{"auto" if smooth else "pixelated"}"/>'
    )
    for index, name in enumerate(names):
        body += _text(frame.left - 8, frame.top + height * (index + 0.5) / len(names) + 4, _short(name, 9), "end")
    return _svg(title, body + _axes(frame, x_axis, y_axis, grid=False), WIDTH, TOP + height + 44)


def stacked(charts: Sequence[str]) -> str:
    """Charts one below the other, as one SVG."""
    drawn, width, height = [], 0, 0
    for chart in charts:
        own_width, own_height = map(int, re.findall(r'\b(?:width|height)="(\d+)"', chart[: chart.index(">")]))
        drawn.append(chart.replace("<svg ", f'<svg y="{height}" ', 1))
        width, height = max(width, own_width), height + own_height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return f"{head}{''.join(drawn)}</svg>"


# Parts of charts. -------------------------------------------------------------------------------------------


def _parts(points: Points) -> list[list[tuple[float, float]]]:
    """The points between gaps."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            parts[-1].append((x, y))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _means(points: list[tuple[float, float]], size: int) -> list[tuple[float, float]]:
    """The means of each `size` points that follow each other."""
    groups = (points[at : at + size] for at in range(0, len(points), size))
    return [tuple(np.mean(group, axis=0).tolist()) for group in groups]


def _line(
    frame: Frame, x_axis: Axis, y_axis: Axis, name: str, parts: list[list[tuple[float, float]]], index: int
) -> str:
    colour, style = COLOURS[index % len(COLOURS)], f'stroke-width="1.8" stroke-linecap="round"{_dashes(index)}'
    mark = 'r="3"' if sum(map(len, parts)) <= 25 else 'r="4" class="point"'  # seen when one points at it
    drawn = []
    for part in parts:
        places = [(frame.x(x_axis, x), frame.y(y_axis, y)) for x, y in part]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*places, places[-1]))  # twice, so that one point alone is a dot
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" {style}/>')
        for (x, y), (at, value) in zip(places, part, strict=True):
            said = f"{name}, {x_axis.label} {number(at)}: {number(value)}"
            drawn.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" {mark} fill="{colour}"><title>{escape(said)}</title></circle>'
            )
    return f'<g role="img" aria-label="{escape(name)}">{"".join(drawn)}</g>'


def _dashes(index: int) -> str:
    dash = DASHES[index // len(COLOURS) % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _legend(names: list[str], width: float) -> tuple[str, float]:
    """The names of lines with their colours, and where it ends."""
    x, y, drawn = 10.0, 42.0, []
    for index, name in enumerate(names):
        size = 34 + CHARACTER * len(name)
        if x > 10 and x + size > width:
            x, y = 10.0, y + 18
        colour = COLOURS[index % len(COLOURS)]
        drawn.append(
            f'<line x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="3"{_dashes(index)}/>'
        )
        drawn.append(_text(x + 27, y, name))
        x += size + 8
    return "".join(drawn), y + 12


def _frame(y_axis: Axis, top: float, width: float, height: float) -> Frame:
    left = 34 + CHARACTER * max((len(number(tick)) for tick in y_axis.ticks), default=0)
    return Frame(left, top, width - left - 16, height - top - 44)


def _axes(frame: Frame, x_axis: Axis, y_axis: Axis, grid: bool = True) -> str:
    """Ticks with numbers, the labels, and lines through the ticks."""
    bottom, right = frame.top + frame.height, frame.left + frame.width
    lines, marks, texts = [], [], []
    for tick in x_axis.ticks:
        x = frame.x(x_axis, tick)
        lines.append(f"M{x:.1f} {frame.top:.1f}V{bottom:.1f}")
        marks.append(f"M{x:.1f} {bottom:.1f}v4")
        texts.append(_text(x, bottom + 17, number(tick), "middle"))
    for tick in y_axis.ticks:
        y = frame.y(y_axis, tick)
        lines.append(f"M{frame.left:.1f} {y:.1f}H{right:.1f}")
        marks.append(f"M{frame.left:.1f} {y:.1f}h-4")
        texts.append(_text(frame.left - 8, y + 4, number(tick), "end"))
    if x_axis.label:
        texts.append(_text(frame.left + frame.width / 2, bottom + 36, x_axis.label, "middle"))
    if y_axis.label:
        texts.append(_upright(14, frame.top + frame.height / 2, y_axis.label))
    drawn = f'<path d="{"".join(lines)}" stroke="currentColor" stroke-opacity="0.15" fill="none"/>' if grid else ""
    outline = f"M{frame.left:.1f} {frame.top:.1f}V{bottom:.1f}H{right:.1f}"
    return (
        f'{drawn}<path d="{outline}{"".join(marks)}" stroke="currentColor" stroke-opacity="0.6" fill="none"/>'
        + "".join(texts)
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _upright(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y:.1f}" text-anchor="middle" fill="currentColor" transform="rotate(-90 {x} {y:.1f})">{escape(text)}</text>'


def _short(name: str, most: int = NAME) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _shade(share: float) -> str:
    """From nearly white to dark blue."""
    ends: Any = np.array([[239, 244, 248], [0, 58, 102]])
    return "#" + "".join(f"{round(value):02x}" for value in ends[0] + (ends[1] - ends[0]) * share**0.8)


def _svg(title: str, body: str, width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
        f'<text x="10" y="17" font-size="14" font-weight="600">{escape(title)}</text>{body}</svg>'
    )
