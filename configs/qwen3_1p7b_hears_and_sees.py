"""Qwen3 1.7B that hears and sees: Whisper large-v3-turbo's encoder, SigLIP 2 B/16, soft tokens and LoRA; on 8 GPUs.

    mmjax import models/qwen3_1p7b-hf -o models/qwen3_1p7b                              # Qwen/Qwen3-1.7B
    mmjax import models/whisper_large_v3_turbo-hf -o models/whisper_large_v3_turbo      # openai/whisper-large-v3-turbo
    mmjax import models/siglip2_b16-hf -o models/siglip2_b16                            # google/siglip2-base-patch16-256
    mmjax plan configs/qwen3_1p7b_hears_and_sees.py --machine h100:8
    mmjax train configs/qwen3_1p7b_hears_and_sees.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 27.7 of 59.3 GiB per device, 0.17 s
per step, bound by memory, 262,000 tokens of text and 4,370 seconds of audio per second, MFU 55 %. At 2.50 dollars per GPU-hour, the
5,000 steps (480,000 conversations) cost 4.70 dollars. For 4 TPU v5p (`--machine v5p:2x2x1`): 60.6 of 95.7 GiB, 0.62 s per
step, MFU 64 %, 14.50 dollars at 4.20 per chip-hour; libtpu's own cost model predicts 1.08 s per step.

The three pretrained models are frozen and kept in bfloat16. Trained are the projectors (25 million parameters) and the adapters
(23 million). Soft tokens need nothing else that is new, so a few hours of data are enough to begin with. Recordings have no
silence added: every soft token would cost as much as a token of text. Whisper was trained with silence up to 30 s, so its encoder has
adapters, too.

A row has room for three conversations of 512 tokens, with 25.6 s of speech (320 soft tokens) and three pictures (64 each): 2,048 tokens
in all. The lists of conversations are your own: docs/data.md, section 6, describes their rows. This config has not been trained.
"""

from mmjax.config import (
    MLP,
    AdamW,
    CausalLM,
    Conversation,
    Data,
    Evaluation,
    Experiment,
    Filters,
    Group,
    HuggingFaceTokenizer,
    Log,
    LoRA,
    Manifest,
    Multimodal,
    Optimizer,
    SoftTokens,
    TextDecoder,
    TokenIds,
    ViT,
    WarmupCosine,
    WhisperEncoder,
)

FROZEN = Group(frozen=True, dtype="bfloat16")

config = Experiment(
    name="qwen3_1p7b_hears_and_sees",
    steps=5000,
    data=Data(
        source=Manifest(splits={"train": "data/conversations/train.jsonl", "test": "data/conversations/test.jsonl"}),
        inputs={"text": Conversation()},
        tokenizer=HuggingFaceTokenizer(file="models/qwen3_1p7b/tokenizer.json"),
        filters=Filters(longest=25.0),
        batch_rows=32,
        rows={"text": 1536, "speech": 2560, "image": 3 * 256, "examples": 8},
        subsets={"speech+image+text": 1.0},
        threads=16,
    ),
    model=Multimodal(
        encoders={
            "text": TokenIds(),
            "speech": WhisperEncoder.preset("large-v3-turbo", remat="dots"),
            "image": ViT.preset("SigLIP B/16", image_size=256),
        },
        tasks={
            "chat": CausalLM(
                decoder=TextDecoder.preset("Qwen3 1.7B", remat="dots"),
                media=("speech", "image"),
                fusion=SoftTokens(scale=0.1, projectors={"speech": MLP(rate=12.5), "image": MLP(stack=4)}),
                ends=(151_643, 151_645),  # <|endoftext|>, <|im_end|>
                length=256,
            ),
        },
        dtype="bfloat16",
    ),
    initial={
        "tasks.chat.decoder": "models/qwen3_1p7b",
        "encoders.speech": "models/whisper_large_v3_turbo",
        "encoders.image": "models/siglip2_b16",
    },
    adapters={
        "tasks.chat.decoder.layers.**": LoRA(rank=16, alpha=32),
        "encoders.speech.layers.**": LoRA(rank=8, alpha=16),
    },
    optimizer=Optimizer(
        rule=AdamW(b2=0.95),
        schedule=WarmupCosine(peak=2e-4, warmup=0.03),
        groups={"encoders": FROZEN, "tasks.chat.decoder": FROZEN},
    ),
    evaluation=Evaluation(every_steps=1000, subsets=("speech+image+text",), examples=512),
    log=Log(every_steps=10),
)
