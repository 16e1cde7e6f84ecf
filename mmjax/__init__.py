"""mmjax: train one model over speech, images and text, with nothing spent on padding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from mmjax.run import Run
    from mmjax.search import SearchIndex

__version__ = "0.1.0"


def open(
    directory: "str | Path",
    overrides: Sequence[str] = (),
    weights: Literal["float32", "bfloat16", "int8", "int4"] = "float32",
) -> "Run":
    """Opens a run directory, to predict, embed and evaluate with its newest checkpoint: see `mmjax.run.Run`.

    Args:
      directory: of a run, or of an import.
      overrides: arguments "--KEY", "VALUE" that change the config of the run.
      weights: of the parameters on the device.

    Raises:
      UserError: there is no run in the directory, or it has no intact checkpoint.
    """
    from mmjax.run import Run

    return Run(directory, overrides, weights)


def open_index(directory: "str | Path") -> "SearchIndex":
    """Opens an index that `mmjax index` or `Run.index` wrote, to search it: see `mmjax.search.SearchIndex`.

    Raises:
      UserError: there is no index in the directory, or it is not complete.
    """
    from mmjax.search import SearchIndex

    return SearchIndex(directory)
