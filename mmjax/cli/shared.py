"""What the commands share: numbers in, JSON out."""

import argparse
import json
import math
from collections.abc import Callable
from typing import Any


def whole(least: int) -> Callable[[str], int]:
    """A whole number of at least so much."""

    def parse(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least {least}")
        return int(text)

    return parse


def print_json(value: Any) -> None:
    """One line of strict JSON: what is not a finite number becomes null."""

    def strict(node):
        if isinstance(node, dict):
            return {key: strict(child) for key, child in node.items()}
        if isinstance(node, list):
            return [strict(child) for child in node]
        return None if isinstance(node, float) and not math.isfinite(node) else node

    print(json.dumps(strict(value), allow_nan=False))
