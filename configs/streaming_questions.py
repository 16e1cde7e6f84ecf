"""Speech recognition while somebody speaks: the questions of Spoken Easy-VQA, with a causal Conformer that reads chunks of 0.32 s.

    mmjax train configs/streaming_questions.py
    mmjax predict runs/streaming_questions --stream FILE.wav

The encoder attends to the chunk of a token and to the four chunks before it (1.28 s), and its convolutions read no later token. So
a recording gives the same text while it is spoken as when it is read as a whole. docs/decoding.md, "Streaming", lists what a config
needs for that.

A stream goes on after an utterance, so each recording of the training split has one to four questions (`Joined`).

Measured on 2026-12-01 on two CPU cores (Cascade Lake; jax 0.10.2): 3 minutes. On the test split (9,673 questions, in voices that are not
in the training split), the CER is 0.6 % and the WER 0.7 %. On 1,000 recordings of one to four of these questions, the WER is 0.4 %; it
was 30 % after training with one question in each recording. While a recording goes on, a chunk takes 0.9 ms in the median and 4.6 ms
at the 99th percentile (idle cores); the real-time factor is 0.005.
"""

from mmjax.config import (
    CTC,
    Chunking,
    Conformer,
    Convolution,
    Data,
    Evaluation,
    Experiment,
    Joined,
    Log,
    Multimodal,
    Muon,
    Optimizer,
    Rotary,
    SentencePiece,
    SpokenEasyVQA,
    StridedStem,
    WarmupCosine,
)

config = Experiment(
    name="streaming_questions",
    steps=600,
    data=Data(
        source=Joined(source=SpokenEasyVQA(), most=4, seconds=12.0, pause=(0.1, 1.5)),
        tokenizer=SentencePiece(vocabulary=128, byte_fallback=False),
        batch_rows=8,
        rows={"speech": 1280, "transcript": 72, "examples": 6},
        subsets={"speech": 1.0},
    ),
    model=Multimodal(
        encoders={
            "speech": Conformer(
                layers=2,
                width=96,
                heads=4,
                stem=StridedStem(channels=32),
                positions=Rotary(),
                convolution=Convolution(kernel=9, causal=True),
                chunks=Chunking(size=8, left=4),
            ),
        },
        tasks={"transcript": CTC(reads="speech")},
        unroll=True,
    ),
    optimizer=Optimizer(rule=Muon(), schedule=WarmupCosine(peak=2.5e-3, warmup=0.1), ema=0.99),
    evaluation=Evaluation(subsets=("speech",)),
    log=Log(every_steps=10),
)
