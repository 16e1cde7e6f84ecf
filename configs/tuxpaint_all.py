"""One model that recognises, translates, captions and retrieves, on Tux Paint's stamps in Spanish and French.

    mmjax train configs/tuxpaint_all.py
    python -m benchmarks.multitask        # this model beside a model for each task, with the same compute together

CTC writes what is said. One decoder writes the English description: a translation where it reads speech, a caption where it reads a
picture. The speech encoder also finds the written description among all others, and the description its recordings.

Measured on 2026-11-30 on one of 2 CPU cores (Cascade Lake): 12 minutes for 900 steps. "alone" is a model for each task with the same
encoders and data, and a quarter of the FLOPs each (together 13 minutes). The test split has 133 recordings of 60 descriptions, none of
which is in the training split:

    task          metric                            this    alone   random text
    recognition   CER                             67.5 %   68.3 %         109 %
    recognition   WER                             77.6 %   79.3 %         129 %
    translation   BLEU                              21.0      1.0           1.1
    translation   chrF                              29.7     10.9           9.0
    captioning    BLEU                              18.8     23.6           1.1
    captioning    chrF                              26.9     31.4           9.0
    retrieval     recall@10, speech to text       86.2 %   73.7 %    about 17 %
    retrieval     recall@10, text to speech       80.1 %   71.6 %    about 17 %

Translation gains most: alone, 1,226 recordings are not enough for its decoder, which here also learns from captions and retrieval.
Captioning loses.
"""

from mmjax.config import (
    CTC,
    Conformer,
    Contrast,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Filters,
    ImageAugmentation,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    TextDecoder,
    Transformer,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
    Write,
)

WIDTH = 128
sizes = dict(width=WIDTH, heads=4, mlp=384, dropout=0.1)

config = Experiment(
    name="tuxpaint_all",
    steps=900,
    data=Data(
        source=TuxPaintStamps(languages=("es", "fr")),
        tokenizer=SentencePiece(vocabulary=500, byte_fallback=False, normalisation="nmt_nfkc_cf"),
        filters=Filters(longest=10.0),
        batch_rows=4,
        rows={"speech": 1000, "image": 320, "text": 96, "transcript": 96, "target": 160, "examples": 10},
        subsets={"speech+text": 0.5, "image": 0.5},
        image_augmentation=ImageAugmentation(least_area=0.5, flip=0.0),
        speed=SpeedPerturbation(),
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
                augment=SpeechAugmentation(masks=SpecAugment(frequency_width=18, time_masks=2)),
                dropout=0.1,
            ),
            "image": ViT(
                patch=8,
                image_size=64,
                layers=4,
                positions=Rotary(),
                pixels=PixelNormalisation(mean=0.8, std=0.3),
                **sizes,
            ),
            "text": Transformer(layers=2, **sizes),
        },
        tasks={
            "transcript": CTC(reads="speech"),
            "description": Write(
                reads=("speech", "image"),
                label="target",
                decoder=TextDecoder(layers=2, **sizes),
                label_smoothing=0.1,
                measures=("bleu", "chrf"),
            ),
            "pair": Contrast(between=("speech", "text"), outputs=WIDTH),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=0.05), ema=0.99),
    evaluation=Evaluation(subsets=("speech+text", "speech", "image")),
    log=Log(every_steps=20),
)
