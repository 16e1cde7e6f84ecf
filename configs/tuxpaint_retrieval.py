"""Recordings, pictures and texts in one space: find the picture that is spoken of, in any of a dozen languages.

mmjax train configs/tuxpaint_retrieval.py
"""

from mmjax.config import (
    Conformer,
    Contrast,
    Data,
    Evaluation,
    Experiment,
    Filters,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    SentencePiece,
    SigLIP,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    Transformer,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
)

STEPS = 1500
WIDTH = 128

config = Experiment(
    name="tuxpaint_retrieval",
    steps=STEPS,
    data=Data(
        source=TuxPaintStamps(),
        tokenizer=SentencePiece(vocabulary=1000, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=10.0),
        batch_rows=8,
        rows={"speech": 1000, "image": 768, "text": 160, "examples": 12},
        subsets={"speech+image+text": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.5),
        speed=SpeedPerturbation(),
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=4,
                width=WIDTH,
                heads=4,
                kernel=15,
                stem_channels=32,
                positions="rotary",
                augment=SpeechAugmentation(masks=SpecAugment()),
                dropout=0.1,
            ),
            "image": ViT(
                patch=8, image_size=64, layers=4, width=WIDTH, heads=4, mlp=384, positions="rotary", dropout=0.1
            ),
            "text": Transformer(vocabulary=1000, layers=3, width=WIDTH, heads=4, mlp=384, dropout=0.1),
        },
        fusion=None,
        heads={
            "speech_image": Contrast(between=("speech", "image"), outputs=WIDTH),
            "text_image": Contrast(between=("text", "image"), outputs=WIDTH),
            "speech_text": Contrast(between=("speech", "text"), outputs=WIDTH),
        },
        unroll=True,
    ),
    objectives={"speech_image": SigLIP(), "text_image": SigLIP(), "speech_text": SigLIP()},
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=200, steps=STEPS), ema=0.998),
    evaluation=Evaluation(every_steps=500, subsets=("speech+image+text",)),
    log=Log(every_steps=20),
)
