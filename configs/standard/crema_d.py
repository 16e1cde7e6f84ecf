"""Emotions of voices: CREMA-D (Cao et al. 2014), from TFDS, on one GPU. TFDS's three splits have different speakers.

    mmjax train configs/standard/crema_d.py
    mmjax train configs/standard/crema_d.py --data.source.name savee     # SAVEE: four men; download it first, as TFDS says

The usual metric is UAR (`answer/uar`). For speaker-independent folds, use `mmjax crossval --group`. Only the data, the length and the
dropout differ from speech_commands.py. This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import load

commands = load(Path(__file__).with_name("speech_commands.py"))
speech = commands.model.encoders["speech"]

config = dataclasses.replace(
    commands,
    name="crema_d",
    steps=3_000,
    data=dataclasses.replace(
        commands.data,
        source=dataclasses.replace(commands.data.source, name="crema_d"),
        rows={"speech": 2000, "examples": 12},
    ),
    model=dataclasses.replace(commands.model, encoders={"speech": speech.clone(dropout=0.2)}),
)
