"""Visual question answering by words: a decoder writes the answer to a written or spoken question about an image (easy-VQA).

    mmjax train configs/vqa_words.py

Always writing the most frequent answer ("yes") is right for 37.3 % of the 9,673 questions of the test split, and the most frequent
answer to each question, without the image, for 67.0 %.

Measured on 2026-11-30 on one core of 2 (Cascade Lake) that other work shared, 350 steps in some 12 minutes of the core: of 2,000 questions of
the test split, 87.1 % of the written answers are right to the letter, both of spoken and of written questions.
"""

from mmjax.config import (
    CTC,
    Conformer,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    SpokenEasyVQA,
    StridedStem,
    TextDecoder,
    Transformer,
    ViT,
    WarmupCosine,
    Write,
)

config = Experiment(
    name="vqa_words",
    steps=350,
    data=Data(
        source=SpokenEasyVQA(),
        tokenizer=SentencePiece(vocabulary=128, byte_fallback=False),
        batch_rows=16,
        rows={"speech": 640, "image": 448, "text": 32, "transcript": 32, "answer": 20, "examples": 8},
        subsets={"speech+image": 0.4, "image+text": 0.6},
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
        fusion=None,
        tasks={
            "answer": Write(
                reads=("speech", "image", "text"),
                label="answer",
                decoder=TextDecoder(vocabulary=128, layers=3, width=128, heads=4, mlp=384),
                measures=("exact_match", "f1"),
            ),
            "transcript": CTC(reads="speech", weight=0.3),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2.5e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech+image", "image+text")),
    log=Log(every_steps=10),
)
