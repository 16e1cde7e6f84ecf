"""Retrieval between recordings, images and texts in one embedding space, in twelve languages.

    mmjax train configs/tuxpaint_retrieval.py

Measured on 2 CPU cores (Cascade Lake, 2.5 GHz; jax 0.10.2), while other work used the same cores: 34 minutes.
The test split has 657 recordings; none of its images and phrases is in the training split. Each recall is followed by that of random
guessing, among all different images, texts or recordings of the split (their number is in the last column):

    from   to       recall@1          recall@5          recall@10         of
    speech image     4.4 %   1.5 %    24.0 %   7.4 %    40.2 %  14.7 %     68
    image  speech    1.5 %   1.5 %    17.7 %   7.2 %    32.4 %  13.8 %    525
    text   image    11.1 %   1.7 %    32.7 %   8.2 %    46.5 %  16.3 %     68
    image  text      7.4 %   1.7 %    27.9 %   8.0 %    36.8 %  15.4 %    441
    speech text     11.7 %   0.2 %    53.3 %   0.9 %    69.8 %   1.8 %    543
    text   speech   12.5 %   0.2 %    49.9 %   0.9 %    69.2 %   1.8 %    649

Retrieval between speech and text works well. Retrieval of images works poorly: there are only 622 different training images.
"""

from mmjax.config import (
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
    Rotary,
    SentencePiece,
    SpecAugment,
    SpeechAugmentation,
    SpeedPerturbation,
    StridedStem,
    Transformer,
    TuxPaintStamps,
    ViT,
    WarmupCosine,
)

WIDTH = 128

config = Experiment(
    name="tuxpaint_retrieval",
    steps=1500,
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
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=15),
                augment=SpeechAugmentation(masks=SpecAugment()),
                dropout=0.1,
            ),
            "image": ViT(
                patch=8, image_size=64, layers=4, width=WIDTH, heads=4, mlp=384, positions=Rotary(), dropout=0.1
            ),
            "text": Transformer(vocabulary=1000, layers=3, width=WIDTH, heads=4, mlp=384, dropout=0.1),
        },
        fusion=None,
        tasks={
            "speech_image": Contrast(between=("speech", "image"), outputs=WIDTH),
            "text_image": Contrast(between=("text", "image"), outputs=WIDTH),
            "speech_text": Contrast(between=("speech", "text"), outputs=WIDTH),
        },
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2e-3, warmup=2 / 15), ema=0.998),
    evaluation=Evaluation(every_steps=500, subsets=("speech+image+text",)),
    log=Log(every_steps=20),
)
