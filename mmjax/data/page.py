"""An HTML page about a source: counts, histograms of sizes, and some examples to see and hear."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax import charts, html
from mmjax.data.example import Example, pieces_of
from mmjax.data.inputs import USUAL_INPUTS, Input, Text
from mmjax.data.labels import classes_of, named
from mmjax.data.vectors import VectorInput
from mmjax.errors import UserError

REASONS = 5  # reasons listed for examples that were left out
FIRST = 12  # classes of a label that are listed
BARS = 20  # the largest groups and classes of each kind that the page shows


def facts(source: Any) -> dict[str, Any]:
    """Statistics of a source.

    Returns:
      {"examples", "hours" of speech, "sizes": {stream: {"examples", "least", "mean", "largest", "unit"}}, "labels":
      {label: {"kind", "names": how many}}, "groups": {"language": {name: count}}, "notes": unused columns or files, and unknown tokens,
      "dropped": {reason: count}, "reasons": the first reasons, one line each, and how many more there are}.
    """
    found: dict[str, Any] = {"examples": len(source), "sizes": {}}
    for name, (values, unit) in _measures(source).items():
        there = values[values > 0]
        if len(there):
            found["sizes"][name] = {
                "examples": len(there),
                "least": float(there.min()),
                "mean": float(there.mean()),
                "largest": float(there.max()),
                "unit": unit,
            }
    if heard := [size for size in found["sizes"].values() if size["unit"] == "seconds"]:
        found["hours"] = sum(size["mean"] * size["examples"] for size in heard) / 3600
    for kind, (numbers, names) in getattr(source, "groups", {}).items():
        counts = np.bincount(numbers[numbers >= 0], minlength=len(names))
        found.setdefault("groups", {})[kind] = dict(zip(names, counts.tolist(), strict=True))
    if labels := {name: label for name, label in source.labels.items() if label.names}:
        found["labels"] = {
            name: {"kind": label.kind, "names": len(label.names), "first": label.names[:FIRST]}
            for name, label in labels.items()
        }
    parts = getattr(source, "sources", {"": source}).values()  # of a mixture
    found["notes"] = [note for part in parts for note in getattr(part, "notes", ())]
    found["dropped"] = dict(getattr(source, "dropped", {}))
    left_out = [
        f"{f'{of}, ' if of else ''}example {number} ({part.name(number) or 'no name'}): {reason}"
        for of, part in getattr(source, "sources", {"": source}).items()
        for number, reason in getattr(part, "quarantine", ())[:REASONS]
    ]
    more = sum(found["dropped"].values()) - len(left_out[:REASONS])
    found["reasons"] = left_out[:REASONS] + [f"and {more:,} more"] * (more > 0)
    return found


def _measures(source: Any) -> dict[str, tuple[np.ndarray, str]]:
    """Sizes [n] of each stream in a readable unit, and the unit's name."""
    found, inputs = {}, inputs_of(source)
    for name, values in source.sizes.items():
        one = inputs.get(name, Text())
        found[name] = np.asarray(one.amount(values, rate_of(source))), one.unit
    if getattr(source, "tokenizer", None) is None:
        found |= {name: (values, "characters") for name, values in getattr(source, "characters", {}).items()}
    return found


def inputs_of(source: Any) -> dict[str, Input]:
    """The inputs of an opened source by name; what it does not say follows from names and sizes."""
    known = {**USUAL_INPUTS, **getattr(source, "inputs", {})}
    labels = {"transcript", "target", *source.labels}
    return {name: known.get(name) or VectorInput() for name in source.sizes if name in known or name not in labels}


def rate_of(source: Any) -> int:
    """The sample rate of a source's recordings in Hz."""
    return getattr(source, "sample_rate", None) or 16_000


def page(source: Any, title: str, padding: Mapping[str, float], examples: int = 24, seed: int = 0) -> str:
    """The page as one self-contained HTML document.

    Args:
      padding: share of empty positions by stream under the config.
      examples: number of random examples to show.
    """
    about = facts(source)
    rows = [("examples", f"{about['examples']:,}")]
    if "hours" in about:
        rows.append(("speech", f"{about['hours']:,.2f} hours"))
    rows += [(f"{label['kind']} of {name}", f"{label['names']:,}") for name, label in about.get("labels", {}).items()]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in sorted(about["dropped"].items())]
    rows += [(f"padding of {name}", f"{100 * share:.1f} %") for name, share in padding.items()]
    sizes = [
        charts.histogram(values[values > 0], unit, f"{name}: {_range(about['sizes'][name])}")
        for name, (values, unit) in _measures(source).items()
        if name in about["sizes"]
    ]
    counts = [_bars(name, found) for name, found in (about.get("groups", {}) | _label_counts(source)).items() if found]
    chosen = np.random.default_rng(seed).permutation(len(source))[:examples]
    shown = "".join(_example(source, int(number)) for number in sorted(chosen))
    body = html.table([], [(html.escape(name), value) for name, value in rows])
    body += "".join(f"<p>{html.escape(line)}</p>" for line in (*about["reasons"], *about["notes"]))
    body += html.section("Sizes", html.figures(sizes), "sizes") if sizes else ""
    body += html.section("Counts", html.figures(counts), "counts") if counts else ""
    return html.document(title, body + html.section("Examples", f"<div class=examples>{shown}</div>", "examples"))


def _range(size: Mapping[str, Any]) -> str:
    return f"{size['least']:.3g} to {size['largest']:.3g}, mean {size['mean']:.3g} {size['unit']}"


def _label_counts(source: Any) -> dict[str, dict[str, int]]:
    """The number of examples of each class, by label of one class."""
    found = {}
    for name, label in source.labels.items():
        if label.kind == "class" and label.names:
            numbers = classes_of(source, name)
            counts = np.bincount(numbers[numbers >= 0], minlength=len(label.names))
            found[name] = dict(zip(label.names, counts.tolist(), strict=True))
    return found


def _bars(name: str, counts: Mapping[str, int]) -> str:
    """A chart of the number of examples of each group or class."""
    largest = dict(sorted(counts.items(), key=lambda item: -item[1])[:BARS])
    title = f"{name}: the largest {BARS} of {len(counts):,}" if len(counts) > BARS else name
    return charts.bar_chart(largest, "examples", title)


def shown_inputs(source: Any, example: Example) -> list[tuple[str, str | tuple[str, bytes]]]:
    """The inputs of an example for people: their names, with texts, or media types and files.

    Raises:
      UserError: an input cannot be read.
    """
    inputs, rate = inputs_of(source), rate_of(source)
    return [
        (name, shown)
        for name in example.inputs
        for piece in pieces_of(example.input(name))
        for shown in inputs.get(name, Text()).shown(piece, rate)
    ]


def _example(source: Any, number: int) -> str:
    parts = [f"<b>{number}</b>"]
    try:
        example = source[number]
        parts += [html.media(name, shown) for name, shown in shown_inputs(source, example)]
        for name, value in example.labels.items():
            parts.append(html.labelled(name, str(named(source.labels.get(name), value))))
    except UserError as error:
        parts.append(f"<i>{html.escape(str(error))}</i>")
    return f"<div class=example>{'<br>'.join(parts)}</div>"
