"""Retrieval between drawings and their titles, of the Open Clip Art Library.

    mmjax train configs/openclipart_retrieval.py
    mmjax index runs/openclipart_retrieval drawings/ -o drawings-index
    mmjax search drawings-index --text "a red flower"

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake): 9 minutes for 450 steps (24 epochs of 2,397 drawings). The test split has 353
drawings; none has a title of the training split, and none looks like a training drawing. 328 are different, with 272 different titles.
Below this model are a PyTorch model of the same sizes, on the same drawings for as many minutes (`python -m benchmarks.quality
retrieval`), and guessing:

    from   to               recall@1   recall@5   recall@10   median rank    of
    image  text  this          7.0 %     13.4 %      16.5 %            75   272
                 PyTorch       5.5 %     13.7 %      19.5 %            68
                 guessing      0.4 %      1.8 %       3.7 %           136
    text   image this          6.3 %     12.5 %      18.0 %          76.5   328
                 PyTorch       5.1 %     12.1 %      18.4 %            77
                 guessing      0.4 %      1.8 %       3.6 %           157

The two models do not differ by more than chance: 2.1 percentage points are a standard error of recall@10.
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
