"""The description of a metric: how it is shown, and which of its values are better."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """How a metric is shown, and which values are better. A metric of which nothing is known is a `Metric()`.

    Attributes:
      better: None: not known, so it cannot choose the best checkpoint.
      percent: shown as a percentage, 0.123 as "12.30 %"; otherwise as a number.
      digits: significant digits of a number.
      heading: what tables write after the name of the task; None: the name of the metric.
      shown: "always": in each table, also in that of groups; "with few": in tables that have room; "never": only in
        files, and in `--json`.
    """

    better: Literal["lower", "higher"] | None = None
    percent: bool = False
    digits: int = 4
    heading: str | None = None
    shown: Literal["always", "with few", "never"] = "always"

    @property
    def factor(self) -> float:
        """What values are multiplied with before they are shown or drawn."""
        return 100.0 if self.percent else 1.0

    def written(self, value: float | None, interval: Sequence[float] | None = None) -> str:
        """ "12.30 %" or "1.234", with an interval "12.3 % [11.0, 13.7]"; "" without a finite value."""
        if value is None or not math.isfinite(value):
            return ""
        values = [self.factor * one for one in (value, *(interval or ()))]
        fewer = interval is not None
        form = f".{2 - fewer}f" if self.percent else f".{self.digits - fewer}g"
        first, *ends = (f"{one:{form}}" for one in values)
        return first + " %" * self.percent + (f" [{', '.join(ends)}]" if ends else "")


Known = Mapping[str, Metric]  # by name, "TASK/METRIC"


def about(name: str, known: Known) -> Metric:
    """The description of the metric "transcript/wer", or of the metric "transcript/wer/language/fr" of a group."""
    parts = name.split("/")
    beginnings = ("/".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((known[one] for one in beginnings if one in known), Metric())


def heading(name: str, known: Known) -> str:
    """ "answer/accuracy" -> "answer", "transcript/wer" -> "transcript WER"."""
    task, _, metric = name.partition("/")
    said = about(name, known).heading
    return f"{task} {metric if said is None else said}".strip()
