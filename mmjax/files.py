"""What is written to disk for others to read: whole files, and JSON that every reader accepts."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file under a temporary name and renames it: whoever opens `path` finds the old or the new, never a part.

    Raises:
      OSError: the file could not be written; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine may leave an empty file under the new name
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def json_line(value: Any) -> str:
    """Strict JSON in one line; a number that is not finite becomes null, for JSON has no word for it (RFC 8259)."""

    def strict(node):
        if isinstance(node, dict):
            return {key: strict(child) for key, child in node.items()}
        if isinstance(node, list | tuple):
            return [strict(child) for child in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    return json.dumps(strict(value), allow_nan=False)
