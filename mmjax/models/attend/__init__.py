"""`attention`, the one function that all models use: it takes segments instead of masks, and reports its backend."""

from mmjax.models.attend.choice import (
    AUTO,
    BACKENDS,
    Decision,
    Refused,
    Selection,
    attention,
    decide,
    decisions,
    with_backend,
)
from mmjax.models.attend.inputs import Inputs, Place
