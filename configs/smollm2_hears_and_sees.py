"""A language model that hears and sees: SmolLM2-135M-Instruct with Whisper base's encoder and a small image tower.

    python docs/fetch_pretrained.py smollm2 models/smollm2-hf && mmjax import models/smollm2-hf -o models/smollm2
    python docs/fetch_pretrained.py whisper models/whisper-hf && mmjax import models/whisper-hf -o models/whisper
    mmjax train configs/spoken_vqa.py --run-dir runs/tower --steps 700 --data.subsets '{"image+text": 1.0}' \\
        --evaluation.subsets '("image+text",)'
    mmjax train configs/smollm2_hears_and_sees.py
    mmjax chat runs/smollm2_hears_and_sees

It transcribes recordings (Asterisk's prompts and spoken questions), answers spoken questions about pictures (easy-VQA), gives
drawings a title (Open Clip Art Library), and still chats. The language model and Whisper are frozen; projectors, adapters
(LoRA) and the image tower are trained.

Measured on 2026-12-01 on one of two CPU cores (Cascade Lake; jax 0.10.2): 500 steps of about 19 conversations took 75 minutes. The
tower of this measurement had only 260 steps (80 % with written questions); the command above trains 700 (10 minutes, 97.4 %). "plain" is benchmarks/plain_hears_and_sees.py: a decoder of 4 layers from random
values, with the same data, encoders, projectors and steps. NLL is in nats per token of a reply:

    test split (examples)          exact           CER             NLL
                                   this   plain    this    plain   this   plain
    spoken questions (60)          98 %   90 %     0.2 %   1.8 %   0.02   0.07
    Asterisk's prompts (55)         0 %    0 %      81 %    80 %   4.15   6.18
    questions about pictures (200) 72 %   74 %                     0.37   0.35    the most frequent answer: 67 %
    titles of drawings (100)        0 %    0 %     107 %   100 %   4.38   6.95

So it transcribes the questions that it has heard in training better than a plain decoder does, and where words are open, it is far ahead
in NLL. Neither reads new prompts or drawings, and both hardly use the pictures: they had 3,800 questions about them, and a weak tower, which had
learned from 16,000. The limit is the number of examples (10,000) that two cores can train in two hours.

The adapters change only tokens after media (`after_media`), so the mixture needs no texts without media, and the perplexity of a manual that
is not trained on stays as it was, to the bit (34.0). Adapters that changed all tokens raised it by 12 %.
"""

from mmjax.config import (
    MLP,
    AdamW,
    Asked,
    AsteriskPrompts,
    CausalLM,
    Conversation,
    Data,
    DebianManual,
    Evaluation,
    Experiment,
    Group,
    HuggingFaceTokenizer,
    Log,
    LoRA,
    Manifest,
    Mixture,
    Multimodal,
    OpenClipart,
    Optimizer,
    PixelNormalisation,
    Rotary,
    SoftTokens,
    SpokenEasyVQA,
    TextDecoder,
    TokenIds,
    ViT,
    WarmupCosine,
    WhisperEncoder,
)

questions = SpokenEasyVQA()

config = Experiment(
    name="smollm2_hears_and_sees",
    steps=700,
    data=Data(
        source=Mixture(
            sources={
                "prompts": Asked(
                    source=AsteriskPrompts(languages=("en",)),
                    user=("<speech> Transcribe the recording.", "<speech> What is said?"),
                    assistant="{transcript}",
                ),
                "sentences": Asked(
                    source=Manifest(
                        splits={split: f"data/sentences/{split}.tsv" for split in ("train", "validation", "test")}
                    ),
                    user=("<speech> Transcribe the recording.", "<speech> What is said?"),
                    assistant="{transcript}",
                ),
                "questions": Asked(source=questions, user=("<speech> Transcribe the recording.",), assistant="{text}"),
                "answers": Asked(source=questions, user=("<image> <speech>",), assistant="{answer}"),
                "written": Asked(source=questions, user=("<image> {text}",), assistant="{answer}"),
                "shapes": Asked(
                    source=Manifest(splits={"train": "data/shapes/train.tsv", "test": "data/shapes/test.tsv"}),
                    user=("<image> What is this?",),
                    assistant="{target}",
                ),
                "drawings": Asked(
                    source=OpenClipart(),
                    user=("<image> A title, please.",),
                    assistant="{target}",
                ),
            },
            weights={
                "prompts": 0.14,
                "sentences": 0.1,
                "questions": 0.04,
                "answers": 0.24,
                "written": 0.24,
                "shapes": 0.12,
                "drawings": 0.12,
            },
        ),
        inputs={"text": Conversation()},
        tokenizer=HuggingFaceTokenizer(file="models/smollm2/tokenizer.json", chat_template="chatml"),
        batch_rows=2,
        rows={"text": 192, "speech": 1128, "image": 448, "examples": 12},
        subsets={"speech+image+text": 1.0},
        threads=1,
    ),
    model=Multimodal(
        encoders={
            "text": TokenIds(),
            "speech": WhisperEncoder.preset("base"),
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
        },
        tasks={
            "chat": CausalLM(
                decoder=TextDecoder.preset("SmolLM2 135M"),
                media=("speech", "image"),
                fusion=SoftTokens(
                    scale=0.1,
                    projectors={"speech": MLP(rate=12.5, hidden=1024), "image": MLP(stack=4, hidden=512)},
                ),
                ends=(2,),
                length=48,
                writes=True,
            ),
        },
    ),
    initial={
        "tasks.chat.decoder": "models/smollm2",
        "encoders.speech": "models/whisper",
        "encoders.image": "runs/tower",
        "tasks.chat.fusion.projectors_speech": "runs/smollm2_speech_alignment:tasks.transcript.projector",
        "tasks.chat.fusion.scale": "runs/smollm2_speech_alignment:tasks.transcript.scale",
    },
    adapters={"tasks.chat.decoder.layers.**": LoRA(rank=16, alpha=32, after_media=True)},
    optimizer=Optimizer(
        rule=AdamW(b2=0.98),
        schedule=WarmupCosine(peak=1e-3, warmup=0.1),
        groups={
            "encoders.speech": Group(frozen=True),
            "tasks.chat.decoder": Group(frozen=True),
            "encoders.image": Group(rate=0.3),
        },
    ),
    evaluation=Evaluation(
        subsets=("speech+image+text",),
        final_examples=400,
        guards={
            "manual": Asked(source=DebianManual(manual="debian-reference-en"), user=("{text}",), assistant="{target}")
        },
    ),
    log=Log(every_steps=10),
)
