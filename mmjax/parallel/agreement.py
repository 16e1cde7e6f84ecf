"""Agreement between processes: an error in one process is raised in all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax.errors import UserError

ROOM = 2000  # bytes of an error message that is sent to the other processes


@contextmanager
def together() -> Iterator[None]:
    """Waits for all processes at the end of the block; all raise if one raised a UserError in the block.

    The block itself must not wait for other processes. If several processes fail, a plain UserError takes precedence
    over its subclasses.
    """
    mine = None
    try:
        yield
    except UserError as error:
        mine = error
    errors = [mine] if jax.process_count() == 1 else _gathered(mine)
    errors = sorted((error for error in errors if error), key=lambda error: type(error) is not UserError)
    if errors:
        raise errors[0] if mine is None or type(errors[0]) is not type(mine) else mine


def _gathered(mine: UserError | None) -> list[UserError | None]:
    text = f"{type(mine).__name__}:{mine}".encode()[:ROOM] if mine else b""
    padded = np.frombuffer(text.ljust(ROOM, b"\0"), np.uint8)
    kinds = {kind.__name__: kind for kind in UserError.__subclasses__()}
    errors = []
    for number, row in enumerate(multihost_utils.process_allgather(padded)):
        kind, _, message = row.tobytes().rstrip(b"\0").decode(errors="replace").partition(":")
        errors.append(kinds.get(kind, UserError)(f"process {number}: {message}") if kind else None)
    return errors


def from_lead(value: Any) -> Any:
    """Broadcasts a JSON-serialisable value from process 0 to every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    padded = np.frombuffer(text[:size].ljust(size, b" "), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
