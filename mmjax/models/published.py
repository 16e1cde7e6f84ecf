"""Published sizes of models, chosen by name."""

from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError, nearest


def published(name: str, sizes: Mapping[str, Any], kind: str) -> Any:
    """The size with this name; an error calls the model `kind`.

    Raises:
      UserError: there is no such size; the message names the nearest one.
    """
    if name not in sizes:
        near = nearest(name, sizes)
        hint = near if near.startswith("; did") else ""
        raise UserError(f"there is no {kind} '{name}'{hint}; there are {', '.join(sizes)}")
    return sizes[name]
