"""Llama 3.1 8B that hears and sees: Whisper large-v3's encoder, SigLIP So400m/14, gated cross-attention and LoRA; on 8 GPUs.

    mmjax import models/llama3_8b-hf -o models/llama3_8b                    # meta-llama/Llama-3.1-8B-Instruct
    mmjax import models/whisper_large_v3-hf -o models/whisper_large_v3      # openai/whisper-large-v3
    mmjax import models/siglip_so400m-hf -o models/siglip_so400m            # google/siglip-so400m-patch14-384
    mmjax plan configs/llama3_8b_hears_and_sees.py --machine h100:8
    mmjax train configs/llama3_8b_hears_and_sees.py

Planned for 8 H100 (step compiled by jax 0.10.2; time from a roofline model, not measured): 52.1 of 59.3 GiB per device, 0.58 s
per step, bound by compute, 102,000 tokens of text and 6,000 seconds of audio (with silence) per second, MFU 67 %. At 2.50 dollars per
GPU-hour, the 5,000 steps (640,000 conversations) cost 16 dollars. For 8 TPU
v5p (`--machine v5p:2x2x2`): 66.9 of 95.7 GiB, 1.27 s per step, MFU 65 %, 59 dollars at 4.20 per chip-hour; libtpu's own cost
model predicts 2.54 s per step.

The three pretrained models are frozen and kept in bfloat16. Trained are the new layers (814 million parameters: gates,
cross-attention, projectors) and the adapters (42 million).

Gated cross-attention is how Llama 3.2 Vision extends this same language model. The text is as long with media as without. With soft
tokens, the 2,048 tokens of a row would be 3,740: a step would take 1.6 times as long, and 76 GiB instead of 48 (estimates of `mmjax
plan`). Whisper gets its windows of 30 s with silence, as in its training; the text does not attend to the silence.

A row has room for four conversations of 512 tokens, with four recordings and three pictures. The lists of conversations are your own:
docs/data.md, section 6, describes their rows. This config has not been trained.
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
    GatedCrossAttention,
    Group,
    HuggingFaceTokenizer,
    Log,
    LoRA,
    Manifest,
    Mesh,
    Multimodal,
    Optimizer,
    Resampler,
    TextDecoder,
    TokenIds,
    ViT,
    WarmupCosine,
    WhisperEncoder,
)

FROZEN = Group(frozen=True, dtype="bfloat16")

config = Experiment(
    name="llama3_8b_hears_and_sees",
    steps=5000,
    data=Data(
        source=Manifest(splits={"train": "data/conversations/train.jsonl", "test": "data/conversations/test.jsonl"}),
        inputs={"text": Conversation()},
        tokenizer=HuggingFaceTokenizer(file="models/llama3_8b/tokenizer.json"),
        filters=Filters(longest=30.0),
        batch_rows=32,
        rows={"text": 2048, "speech": 4 * 3000, "image": 3 * 729, "examples": 8},
        subsets={"speech+image+text": 1.0},
        threads=16,
    ),
    model=Multimodal(
        encoders={
            "text": TokenIds(),
            "speech": WhisperEncoder.preset("large-v3", pad_to_length=True, trim=True),
            "image": ViT.preset("SigLIP So400m/14", image_size=384),
        },
        tasks={
            "chat": CausalLM(
                decoder=TextDecoder.preset("Llama 3.1 8B", remat="dots"),
                media=("speech", "image"),
                fusion=GatedCrossAttention(
                    every=4,
                    mlp=4096,
                    projectors={"speech": MLP(rate=12.5), "image": Resampler(width=1152, heads=16)},
                    remat="dots",
                ),
                ends=(128_001, 128_008, 128_009),  # <|end_of_text|>, <|eom_id|>, <|eot_id|>
                length=256,
            ),
        },
        dtype="bfloat16",
    ),
    initial={
        "tasks.chat.decoder": "models/llama3_8b",
        "encoders.speech": "models/whisper_large_v3",
        "encoders.image": "models/siglip_so400m",
    },
    adapters={"tasks.chat.decoder.layers.**": LoRA(rank=16, alpha=32, after_media=True)},
    optimizer=Optimizer(
        rule=AdamW(b2=0.95),
        schedule=WarmupCosine(peak=1e-4, warmup=0.03),
        groups={"encoders": FROZEN, "tasks.chat.decoder": FROZEN},
    ),
    mesh=Mesh(fsdp=8),
    evaluation=Evaluation(every_steps=1000, subsets=("speech+image+text",), examples=512),
    log=Log(every_steps=10),
)
