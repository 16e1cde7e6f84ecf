"""One attention for the whole house: segments in, no masks; several backends behind it, chosen aloud."""

from mmjax.models.attend.choice import (
    BACKENDS,
    Decision,
    Refused,
    Wanted,
    as_the_model_wants,
    attending,
    attention,
    decide,
    decisions,
)
from mmjax.models.attend.inputs import Inputs, Place

__all__ = [
    "BACKENDS",
    "Decision",
    "Inputs",
    "Place",
    "Refused",
    "Wanted",
    "as_the_model_wants",
    "attending",
    "attention",
    "decide",
    "decisions",
]
