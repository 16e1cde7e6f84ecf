"""Examples of a split to see and hear, with what runs predict and where they look."""

import io
from collections.abc import Sequence
from typing import Any

import soundfile
from PIL import Image

from mmjax import charts, html
from mmjax.data.page import shown_inputs
from mmjax.errors import UserError
from mmjax.evaluate.attention import Looks
from mmjax.evaluate.pictures import coloured, encoded, over_picture, small, spectrogram
from mmjax.report.subject import Subject

LEGEND = (
    "<p>Words of predictions: <span class=sub>substituted</span> <del>deleted</del> <ins>inserted</ins>. Of the attention of "
    "a fusion or a decoder, the mean over layers and heads is shown, from dark (none) to yellow (the most).</p>"
)
ROW, LOWEST, HIGHEST = 16, 40, 400  # pixels of a row of attention, and of all rows at least and at most


def samples(group: Sequence[Subject], numbers: Sequence[int]) -> str:
    """A card for each example.

    Args:
      group: runs that have measured the same examples.
    """
    return LEGEND + "".join(_card(group, number) for number in numbers)


def _card(group: Sequence[Subject], number: int) -> str:
    source = group[0].measured.source
    try:
        example = source[number]
        shown = shown_inputs(source, example)
    except UserError as error:
        return f"<div class=example><h3>Example {number}</h3><p>{html.escape(str(error))}</p></div>\n"
    title = f"Example {number}" + (f": {example.name}" if example.name else "")
    pictures, parts, given = {}, [], set(group[0].measured.subset.split("+"))
    for name, value in shown:
        told = name if name in given else f"{name} (not given to the model)"
        if isinstance(value, str):
            parts.append(f"<div>{html.labelled(told, value)}</div>")
        elif value[0].startswith("image"):
            picture = small(Image.open(io.BytesIO(value[1])))
            pictures.setdefault(name, picture)
            parts.append(_figure(html.media(name, encoded(picture)), told))
        else:
            parts.append(_figure(_heard(told, value) + html.media(name, value)))
    looks = "".join(_looks(subject, number, example, pictures, len(group) > 1) for subject in group)
    return (
        f'<div class="example sample"><h3>{html.escape(title)}</h3><div class=media>{"".join(parts)}</div>'
        f"{_predictions(group, number)}{looks}</div>\n"
    )


def _figure(body: str, caption: str = "") -> str:
    return f"<figure>{body}{f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''}</figure>"


def _heard(name: str, value: tuple[str, bytes]) -> str:
    """The spectrogram of a recording."""
    heard, rate = soundfile.read(io.BytesIO(value[1]), dtype="float32")
    picture = html.data_uri(*encoded(coloured(spectrogram(heard, rate))))
    time = charts.linear([0.0, len(heard) / rate], "time in s", tight=True)
    frequency = charts.linear([0.0, rate / 2000], "frequency in kHz", 4, tight=True)
    return charts.picture_chart(picture, time, frequency, f"Spectrogram of {name}")


# Predictions. -----------------------------------------------------------------------------------------------


def _predictions(group: Sequence[Subject], number: int) -> str:
    """The reference and what each run predicts, by task."""
    found, rows = [subject.measured.compared(number) for subject in group], []
    for task in dict.fromkeys(task for one in found for task in one):
        having = [(subject, one[task]) for subject, one in zip(group, found, strict=True) if task in one]
        rows.append((html.escape(task), "reference", html.escape(_written(having[0][1]["reference"])), ""))
        for subject, one in having:
            compare = compared if subject.measured.kind(task) == "text" else _told
            told, remark = compare(one["reference"], one["hypothesis"])
            sure = f", confidence {one['confidence']:.2f}" if "confidence" in one else ""
            rows.append(("", html.escape(subject.name) if len(group) > 1 else "prediction", told, remark + sure))
    return html.table([], rows, numbers=4) if rows else ""


def _written(value: Any) -> str:
    """A truth or a prediction for people."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {one:.4g}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _told(truth: Any, prediction: Any) -> tuple[str, str]:
    """A prediction that is no text, and whether it is right; numbers are never equal."""
    told = html.escape(_written(prediction))
    if isinstance(truth, dict):
        return told, ""
    return (told, "right") if truth == prediction else (f"<span class=sub>{told}</span>", "wrong")


def compared(reference: str, hypothesis: str) -> tuple[str, str]:
    """A written text as HTML with its errors by word, and their number (the alignment of rapidfuzz).

    Words that are missing are struck through; a word that stands in the place of another names it.
    """
    from rapidfuzz.distance import Levenshtein

    true, said, parts, wrong = reference.split(), hypothesis.split(), [], 0
    for kind, a, b, c, d in Levenshtein.opcodes(true, said):
        before, after = html.escape(" ".join(true[a:b])), html.escape(" ".join(said[c:d]))
        wrong += max(b - a, d - c) if kind != "equal" else 0
        parts.append(
            {
                "equal": after,
                "replace": f'<span class=sub title="instead of: {before}">{after}</span>',
                "delete": f"<del>{before}</del>",
                "insert": f"<ins>{after}</ins>",
            }[kind]
        )
    return " ".join(parts), f"{wrong} of {len(true)} words wrong" if wrong else "right"


# Attention. -------------------------------------------------------------------------------------------------


def _looks(subject: Subject, number: int, example: Any, pictures: dict[str, Image.Image], several: bool) -> str:
    """Where a run looks at an example; nothing for a model without cross-attention."""
    try:
        found = subject.measured.looks(number, example)
    except UserError as error:  # it is longer than a row of the training
        return f"<p>{html.escape(f'No attention of {subject.name}: {error}')}</p>"
    drawn = []
    for part, streams in found.items():
        title = f"{subject.name}: {part}" if several else part
        shares = {stream: float(looks.weights.sum(axis=1).mean()) for stream, (looks, _) in streams.items()}
        told = f"Attention of {title}: " + ", ".join(
            f"{stream} {100 * share:.0f} %" for stream, share in shares.items()
        )
        own = [_over_time(subject, stream, *streams[stream]) for stream in streams]
        own += [_over_picture(title, stream, streams[stream][0], pictures.get(stream)) for stream in streams]
        drawn.append(f'<div class="attention"><p>{html.escape(told)}</p><div class=media>{"".join(own)}</div></div>')
    return "".join(drawn)


def _over_picture(title: str, stream: str, looks: Looks, picture: Image.Image | None) -> str:
    """A picture whose patches have the colour of their attention; nothing for another stream."""
    if looks.places.ndim == 1 or picture is None:
        return ""
    there = looks.places[:, 0] >= 0  # class tokens are no patches
    seen = over_picture(picture, looks.weights[:, there].mean(axis=0), looks.places[there])
    return _figure(html.media(f"attention of {title} over {stream}", encoded(seen)), f"over {stream}")


def _over_time(subject: Subject, stream: str, looks: Looks, names: list[str]) -> str:
    """The attention of each query over the time of a recording; nothing for another stream."""
    rate = subject.measured.run.config.model.encoders[stream].tokens_per_second
    if rate is None or looks.places.ndim != 1:
        return ""
    most = max(float(looks.weights.max()), 1e-12)
    picture = html.data_uri(*encoded(coloured(looks.weights / most), exact=True))
    time = charts.linear([0.0, looks.weights.shape[1] / rate], "time in s", tight=True)
    height = min(max(ROW * len(names), LOWEST), HIGHEST)
    axis = charts.Axis(0.0, 1.0, (), "token" if "(end)" in names else "query")
    shown = names if height >= 0.8 * ROW * len(names) else ()
    title = f"Over {stream} (yellow: {100 * most:.2g} %)"
    return _figure(charts.picture_chart(picture, time, axis, title, height=height, names=shown, smooth=False))
