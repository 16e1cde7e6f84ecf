"""An HTML page about a source: counts, histograms of sizes, and some examples to see and hear."""

import base64
import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.data.example import pieces_of
from mmjax.data.inputs import USUAL_INPUTS, Input, Text
from mmjax.data.labels import named
from mmjax.data.vectors import VectorInput
from mmjax.errors import UserError

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff; }
h1, h2 { font-weight: 600; } table { border-collapse: collapse; } td, th { padding: 0.2em 1em 0.2em 0; text-align: left; }
td.n { text-align: right; } figure { display: inline-block; margin: 0 2em 1em 0; } figcaption { color: #666; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(16em, 1fr)); gap: 1.5em; }
.examples div { border-top: 1px solid #ccc; padding-top: 0.5em; overflow-wrap: anywhere; }
.examples img { max-width: 100%; max-height: 10em; display: block; } .examples b { color: #666; font-weight: normal; }
audio { width: 100%; }
"""
REASONS = 5  # reasons listed for examples that were left out
FIRST = 12  # classes of a label that are listed
GROUPS = 20  # largest groups of each kind that the page lists


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
    rows += [
        (f"{kind} {name}", f"{count:,}")
        for kind, counts in about.get("groups", {}).items()
        for name, count in sorted(counts.items(), key=lambda item: -item[1])[:GROUPS]
    ]
    rows += [(f"{label['kind']} of {name}", f"{label['names']:,}") for name, label in about.get("labels", {}).items()]
    rows += [(f"left out: {reason}", f"{count:,}") for reason, count in sorted(about["dropped"].items())]
    rows += [(line, "") for line in (*about["reasons"], *about["notes"])]
    rows += [(f"padding of {name}", f"{100 * share:.1f} %") for name, share in padding.items()]
    figures = [
        _histogram(values[values > 0], name, unit)
        for name, (values, unit) in _measures(source).items()
        if name in about["sizes"]
    ]
    chosen = np.random.default_rng(seed).permutation(len(source))[:examples]
    shown = [_example(source, int(number)) for number in sorted(chosen)]
    table = "".join(f"<tr><td>{html.escape(name)}</td><td class=n>{value}</td></tr>" for name, value in rows)
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><table>{table}</table><h2>Sizes</h2>{''.join(figures)}"
        f"<h2>Examples</h2><div class=examples>{''.join(shown)}</div>\n"
    )


def _histogram(values: np.ndarray, name: str, unit: str) -> str:
    counts, edges = np.histogram(values, bins=30)
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{10 * i}" y="{100 - 100 * count / top:.1f}" width="9" height="{100 * count / top:.1f}" fill="#4a7a9c">'
        f"<title>{edges[i]:.3g} to {edges[i + 1]:.3g}: {count:,}</title></rect>"
        for i, count in enumerate(counts.tolist())
    )
    caption = f"{html.escape(name)}: {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g} {unit}"
    return f'<figure><svg width="300" height="100" role="img">{bars}</svg><figcaption>{caption}</figcaption></figure>'


def _example(source: Any, number: int) -> str:
    parts = [f"<b>{number}</b>"]
    try:
        example = source[number]
        inputs = inputs_of(source)
        for name in example.inputs:
            value = example.input(name)
            for piece in pieces_of(value):
                for shown in inputs.get(name, Text()).shown(piece, rate_of(source)):
                    parts.append(_element(name, shown))
        for name, value in example.labels.items():
            parts.append(f"<b>{name}</b> {html.escape(str(named(source.labels.get(name), value)))}")
    except UserError as error:
        parts.append(f"<i>{html.escape(str(error))}</i>")
    return f"<div>{'<br>'.join(parts)}</div>"


def _element(name: str, shown: str | tuple[str, bytes]) -> str:
    """The HTML of a text, or of a file of a media type."""
    if isinstance(shown, str):
        return f"<b>{name}</b> {html.escape(shown)}"
    kind, content = shown
    source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    if kind.startswith("audio"):
        return f'<audio controls preload=none src="{source}"></audio>'
    return f'<img src="{source}" alt="{name}">'
