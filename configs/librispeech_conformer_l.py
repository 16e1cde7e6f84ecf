"""Conformer-L (Gulati et al. 2020, arXiv:2005.08100) with CTC on LibriSpeech's 960 hours, on eight GPUs.

    mmjax plan configs/librispeech_conformer_l.py --machine h100:8
    mmjax train configs/librispeech_conformer_l.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 7.9 of 59.3 GiB
per device, 90 ms per step, bound by memory, 25,600 seconds of audio per second, MFU 12 %.

Only the encoder's size, `accumulation` and the schedule's peak differ from librispeech_conformer_s.py.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Conformer, InverseSquareRoot, Multimodal, StridedStem, load

small = load(Path(__file__).with_name("librispeech_conformer_s.py"))
speech = small.model.encoders["speech"]

config = dataclasses.replace(
    small,
    name="librispeech_conformer_l",
    model=Multimodal(
        encoders={
            "speech": Conformer.preset(
                "L", augment=speech.augment, dropout=speech.dropout, stem=StridedStem(scale=True), remat="dots"
            ),
        },
        tasks=small.model.tasks,
        dtype=small.model.dtype,
    ),
    optimizer=dataclasses.replace(
        small.optimizer, accumulation=1, schedule=InverseSquareRoot(peak=0.05 / 512**0.5, warmup=10_000)
    ),
)
