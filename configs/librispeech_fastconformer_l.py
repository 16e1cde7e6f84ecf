"""FastConformer-L (Rekesh et al. 2023, arXiv:2305.05084) with rotary positions and CTC on LibriSpeech's 960 hours: recommended.

    mmjax data build tfds:librispeech -o data/librispeech
    mmjax plan configs/librispeech_fastconformer_l.py --machine h100:8
    mmjax train configs/librispeech_fastconformer_l.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 4.5 of 59.3 GiB
per device, 19 ms per step, bound by memory, 121,700 seconds of audio per second, MFU 16 %. That is 4.7 times the speed of
librispeech_conformer_l.py, which has an MFU of 12 %.

The stem is narrow and depthwise, a token covers 80 ms, and the convolutions have kernels of 9. Positions are rotary and norms are
RMSNorm, which the paper does not use. All else is that of librispeech_conformer_l.py. This config has not been trained yet.
"""

import dataclasses
from pathlib import Path

from mmjax.config import Conformer, Filters, load

large = load(Path(__file__).with_name("librispeech_conformer_l.py"))
speech = large.model.encoders["speech"]
fast = Conformer.preset("modern L", layers=18, augment=speech.augment, dropout=speech.dropout, remat="dots")

config = dataclasses.replace(
    large,
    name="librispeech_fastconformer_l",
    data=dataclasses.replace(large.data, filters=Filters(longest=36.0, tokens_per_frame=1.0, frame=0.08)),
    model=dataclasses.replace(large.model, encoders={"speech": fast}),
)
