"""How metrics change with noise in recordings and corruptions of pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Column, Table

from mmjax.data.corruptions import NOISES, STRENGTHS
from mmjax.errors import UserError, nearest
from mmjax.evaluate.tables import shown_metrics
from mmjax.metric import Known, about, heading

Condition = tuple[str, float]  # a corruption and its level: the signal-to-noise ratio in dB, or the severity
SNRS = (20.0, 10.0, 5.0, 0.0)  # dB
SEVERITIES = (1, 2, 3, 4, 5)


def conditions(
    corruptions: Sequence[str] | None,
    recordings: bool,
    pictures: bool,
    snrs: Sequence[float],
    severities: Sequence[int],
    joint: bool = False,
) -> list[Condition]:
    """Each corruption with each of its levels.

    Args:
      corruptions: None: all for which there are inputs.
      recordings, pictures: whether the modalities that are shown have them.
      joint: whether recordings and pictures are also corrupted together.

    Raises:
      UserError: there is no such corruption, or no input for it; or too few are named to be `joint`.
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
    if joint and (
        corruptions is None or all(one in NOISES for one in chosen) or all(one in STRENGTHS for one in chosen)
    ):
        raise UserError(
            "--joint measures each pair of a noise and a corruption of pictures; name both: --corruptions white,blur --joint"
        )
    return [(name, level) for name in chosen for level in (snrs if name in NOISES else severities)]


def curves(
    measured: Callable[..., Mapping[str, float]], chosen: Sequence[Condition], joint: bool = False
) -> dict[str, Any]:
    """Measures under each of the `conditions`.

    Args:
      measured: any number of conditions that hold together -> metrics; none -> those of the clean data.
      joint: also measure each condition of recordings together with each one of pictures.

    Returns:
      {"clean": metrics, "curves": {corruption: [{"level": dB or severity, "metrics": metrics}]}}, and if asked for, "joint":
      [{"noise", "snr", "corruption", "severity", "metrics"}].
    """
    found: dict[str, Any] = {"clean": dict(measured()), "curves": {}}
    for name, level in chosen:
        found["curves"].setdefault(name, []).append({"level": level, "metrics": dict(measured((name, level)))})
    if joint:
        noises, others = ([one for one in chosen if (one[0] in NOISES) == noise] for noise in (True, False))
        found["joint"] = [
            {
                "noise": noise[0],
                "snr": noise[1],
                "corruption": other[0],
                "severity": other[1],
                "metrics": dict(measured(noise, other)),
            }
            for noise in noises
            for other in others
        ]
    return found


class Grid(NamedTuple):
    """A metric under a noise of recordings together with a corruption of pictures.

    Attributes:
      rows, columns: their levels as texts; the first of each is "clean".
      values: [R, C]; NaN where the metric is not defined.
    """

    noise: str
    corruption: str
    rows: list[str]
    columns: list[str]
    values: np.ndarray


def grids(result: Mapping[str, Any], metric: str) -> list[Grid]:
    """The values of a metric by level of noise and severity, for each pair in "joint" of a result of `curves`."""
    found, joint = [], result.get("joint", [])
    for noise, other in dict.fromkeys((one["noise"], one["corruption"]) for one in joint):
        # By (level of the noise, severity); None: without it.
        at = {(None, None): result["clean"]}
        at |= {(one["level"], None): one["metrics"] for one in result["curves"][noise]}
        at |= {(None, one["level"]): one["metrics"] for one in result["curves"][other]}
        at |= {
            (one["snr"], one["severity"]): one["metrics"]
            for one in joint
            if (one["noise"], one["corruption"]) == (noise, other)
        }
        snrs, severities = (list(dict.fromkeys(levels)) for levels in zip(*at, strict=True))
        values = [[at[snr, severity].get(metric, np.nan) for severity in severities] for snr in snrs]
        rows, columns = (
            ["clean", *(said_level(name, level) for level in levels[1:])]
            for name, levels in ((noise, snrs), (other, severities))
        )
        found.append(Grid(noise, other, rows, columns, np.array(values, np.float64)))
    return found


def tables_of_grids(result: Mapping[str, Any], known: Known) -> list[Table]:
    """A table for each pair in "joint" and each metric: rows are levels of the noise, columns those of the corruption."""
    made = []
    for metric in shown_metrics([result["clean"]], known):
        for grid in grids(result, metric):
            title = f"{heading(metric, known)}: {grid.noise} noise with {grid.corruption}"
            made.append(Table("", *(Column(name, justify="right") for name in grid.columns), title=title))
            for name, row in zip(grid.rows, grid.values.tolist(), strict=True):
                made[-1].add_row(name, *map(about(metric, known).written, row))
    return made


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
