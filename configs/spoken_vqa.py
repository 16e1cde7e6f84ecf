"""Spoken visual question answering from any subset of the modalities: a spoken question, a written question, an image.

    mmjax train configs/spoken_vqa.py

Measured on 2 CPU cores (Cascade Lake, 2.5 GHz; jax 0.10.2) on 2026-11-30: 110 minutes including the final evaluation, while
other work used the same cores (a step takes about 1 s on idle cores). The test split has 9,673 questions, in voices that are not in
the training split. Rows with * are of an earlier training, before weight decay changed:

    modalities           answer     CER      WER
    speech *             66.75 %   0.00 %   0.00 %
    image *              36.72 %
    text *               66.71 %
    speech+image         99.77 %   0.00 %   0.00 %
    speech+text *        67.02 %   0.00 %   0.00 %
    image+text           99.76 %
    speech+image+text *  99.90 %   0.00 %   0.00 %

Always giving the most frequent answer to a question has an accuracy of 67.0 %. Without the image, no higher accuracy is possible.
"""

from mmjax.config import (
    CTC,
    Classify,
    Conformer,
    Convolution,
    CrossAttention,
    Data,
    Evaluation,
    Experiment,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SpokenEasyVQA,
    StridedStem,
    Transformer,
    ViT,
    WarmupCosine,
)

config = Experiment(
    name="spoken_vqa",
    steps=2000,
    data=Data(
        source=SpokenEasyVQA(vocabulary=128),
        batch_rows=16,
        rows={"speech": 640, "image": 448, "text": 31, "transcript": 32, "examples": 8},
        subsets={
            "speech+image": 0.42,
            "image+text": 0.42,
            "speech+image+text": 0.07,
            "speech": 0.03,
            "image": 0.03,
            "text": 0.03,
        },
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=2,
                width=96,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=9),
            ),
            "image": ViT(
                patch=8,
                image_size=64,
                layers=4,
                width=128,
                heads=4,
                mlp=384,
                positions=Rotary(),
                pixels=PixelNormalisation(mean=0.9, std=0.2),
            ),
            "text": Transformer(vocabulary=128, layers=2, width=96, heads=4, mlp=384),
        },
        fusion=CrossAttention(layers=3, width=128, heads=4, mlp=344, queries=8),
        tasks={"answer": Classify(reads="fused", label="answer"), "transcript": CTC(reads="speech", weight=0.3)},
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2.5e-3, warmup=0.025), ema=0.998),
    evaluation=Evaluation(every_steps=500, subsets=("speech+image", "image+text"), examples=1000),
    log=Log(every_steps=20),
)
