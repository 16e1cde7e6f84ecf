"""How metrics change with noise in recordings and corruptions of pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Column, Table

from mmjax.data.corruptions import NOISES, STRENGTHS
from mmjax.errors import UserError, nearest
from mmjax.evaluate.tables import shown_metrics
from mmjax.metric import Known, about, heading

SNRS = (20.0, 10.0, 5.0, 0.0)  # dB
SEVERITIES = (1, 2, 3, 4, 5)


def conditions(
    corruptions: Sequence[str] | None,
    recordings: bool,
    pictures: bool,
    snrs: Sequence[float],
    severities: Sequence[int],
) -> list[tuple[str, float]]:
    """Each corruption with each of its levels.

    Args:
      corruptions: None: all for which there are inputs.
      recordings, pictures: whether the modalities that are shown have them.

    Raises:
      UserError: there is no such corruption, or no input for it.
    """
    fitting = [*(NOISES if recordings else ()), *(STRENGTHS if pictures else ())]
    chosen = fitting if corruptions is None else list(corruptions)
    for name in chosen:
        if name not in (*NOISES, *STRENGTHS):
            raise UserError(f"there is no corruption '{name}'{nearest(name, [*NOISES, *STRENGTHS])}")
        if name not in fitting:
            kind = "recordings" if name in NOISES else "pictures"
            raise UserError(f"the corruption '{name}' is for {kind}, but the modalities that are shown have none")
    if not chosen:
        raise UserError(
            "there is nothing to corrupt: the modalities that are shown have neither recordings nor pictures"
        )
    return [(name, level) for name in chosen for level in (snrs if name in NOISES else severities)]


def curves(
    measured: Callable[[str | None, float], Mapping[str, float]], chosen: Sequence[tuple[str, float]]
) -> dict[str, Any]:
    """Measures under each of the `conditions`.

    Args:
      measured: (corruption, level) -> metrics; (None, 0) -> those of the clean data.

    Returns:
      {"clean": metrics, "curves": {corruption: [{"level": dB or severity, "metrics": metrics}]}}.
    """
    found: dict[str, Any] = {"clean": dict(measured(None, 0)), "curves": {}}
    for name, level in chosen:
        found["curves"].setdefault(name, []).append({"level": level, "metrics": dict(measured(name, level))})
    return found


def table(result: Mapping[str, Any], title: str, known: Known) -> Table:
    """The result of `curves` as a rich table."""
    names = shown_metrics([result["clean"]], known)
    made = Table("corruption", "level", *(Column(heading(name, known), justify="right") for name in names), title=title)
    made.add_row("none", "", *(about(name, known).written(result["clean"].get(name)) for name in names))
    for corruption, points in result["curves"].items():
        made.add_section()
        for point in points:
            cells = (about(name, known).written(point["metrics"].get(name)) for name in names)
            made.add_row(corruption, said_level(corruption, point["level"]), *cells)
    return made


def said_level(corruption: str, level: float) -> str:
    """ "10 dB", or "severity 3"."""
    return f"{level:g} dB" if corruption in NOISES else f"severity {level:g}"
