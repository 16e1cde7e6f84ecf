"""Retrieval between drawings and their titles, of the Open Clip Art Library.

    mmjax train configs/openclipart_retrieval.py
    mmjax index runs/openclipart_retrieval drawings/ -o drawings-index
    mmjax search drawings-index --text "a red flower"

not trained yet
"""

from mmjax.config import (
    Contrast,
    Data,
    Evaluation,
    Experiment,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    OpenClipart,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    Text,
    Transformer,
    ViT,
    WarmupCosine,
)

WIDTH = 128

config = Experiment(
    name="openclipart_retrieval",
    steps=450,
    data=Data(
        source=OpenClipart(),
        inputs={"text": Text(column="target")},
        tokenizer=SentencePiece(vocabulary=500, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        batch_rows=8,
        rows={"image": 1024, "text": 192, "examples": 16},
        subsets={"image+text": 1.0},
        image_augmentation=ImageAugmentation(least_area=0.5, flip=0.0),
    ),
    model=Multimodal(
        encoders={
            "image": ViT(
                patch=8,
                image_size=64,
                layers=4,
                width=WIDTH,
                heads=4,
                mlp=384,
                positions=Rotary(),
                pixels=PixelNormalisation(mean=0.8, std=0.3),
                dropout=0.1,
            ),
            "text": Transformer(layers=2, width=WIDTH, heads=4, mlp=384, dropout=0.1),
        },
        tasks={"pair": Contrast(between=("image", "text"), outputs=WIDTH)},
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.1), ema=0.998),
    evaluation=Evaluation(every_steps=225, subsets=("image+text",)),
    log=Log(every_steps=20),
)
