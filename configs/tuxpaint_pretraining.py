"""Self-supervised pretraining on Tux Paint's stamps, without labels: recordings, pictures and texts.

    mmjax train configs/tuxpaint_pretraining.py
    mmjax train configs/tuxpaint_languages.py                                                   # begins with it
    mmjax train configs/tuxpaint_languages.py --initial '{}' --run-dir runs/without_pretraining

BEST-RQ hides spans of the recordings, MAE three quarters of the pictures, BERT's masked language model a part of the texts; and
recordings, pictures and texts of a stamp are brought together (SigLIP). configs/tuxpaint_languages.py uses the speech encoder.

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake): 7 minutes for 260 steps. configs/tuxpaint_languages.py has the result of
what begins with it: no gain.
"""

from mmjax.config import (
    BestRQ,
    Conformer,
    Contrast,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Log,
    MaskedPatches,
    MaskedTokens,
    Multimodal,
    Muon,
    Optimizer,
    PatchDecoder,
    Rotary,
    SentencePiece,
    StridedStem,
    Transformer,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
)

WIDTH = 128

config = Experiment(
    name="tuxpaint_pretraining",
    steps=260,
    data=Data(
        source=TuxPaintStamps(),
        tokenizer=SentencePiece(vocabulary=1000, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=10.0),
        batch_rows=8,
        rows={"speech": 1000, "image": 768, "text": 80, "examples": 12},
        subsets={"speech+image+text": 1.0},
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=4,
                width=WIDTH,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                dropout=0.1,
            ),
            "image": ViT(patch=8, image_size=64, layers=4, width=WIDTH, heads=4, mlp=384, positions=Rotary()),
            "text": Transformer(layers=3, width=WIDTH, heads=4, mlp=384),
        },
        tasks={
            "codes": BestRQ(codes=512),
            "patches": MaskedPatches(decoder=PatchDecoder(layers=1, width=64, heads=4, mlp=256)),
            "words": MaskedTokens(),
            "speech_text": Contrast(between=("speech", "text"), outputs=WIDTH),
            "speech_image": Contrast(between=("speech", "image"), outputs=WIDTH),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech+image+text",)),
    log=Log(every_steps=20),
)
