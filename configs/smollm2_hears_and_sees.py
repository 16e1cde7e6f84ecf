"""A language model that hears and sees: SmolLM2-135M-Instruct with Whisper base's encoder and a small image tower.

    python docs/fetch_pretrained.py smollm2 models/smollm2-hf && mmjax import models/smollm2-hf -o models/smollm2
    python docs/fetch_pretrained.py whisper models/whisper-hf && mmjax import models/whisper-hf -o models/whisper
    mmjax train configs/spoken_vqa.py --run-dir runs/tower --steps 700 --data.subsets '{"image+text": 1.0}' \\
        --evaluation.subsets '("image+text",)'
    python docs/fetch_data.py sentences data/sentences && python docs/fetch_data.py shapes data/shapes
    mmjax train configs/smollm2_speech_alignment.py
    mmjax train configs/smollm2_hears_and_sees.py
    mmjax chat runs/smollm2_hears_and_sees

It transcribes recordings (Asterisk's prompts, spoken sentences and questions), answers spoken and written questions about pictures
(easy-VQA), describes them, gives drawings a title (Open Clip Art Library), and still chats. The language model and Whisper are
frozen; projectors, adapters (LoRA) and the image tower are trained.

Measured on 2026-12-01 on two CPU cores (Cascade Lake; jax 0.10.2) that other work used, too: 13 minutes for the tower (97.0 % with
written questions), 24 for the alignment of speech, 60 for 700 steps of about 20 conversations. "plain" is
benchmarks/plain_hears_and_sees.py: a decoder of 4 layers from random values, with the same data, encoders, image tower and steps.
It cannot have the aligned projector, which makes embeddings of SmolLM2. NLL is in nats per token of a reply:

    test split (examples)                  exact          CER             chrF            NLL
                                           this   plain   this    plain   this   plain   this   plain
    Asterisk's prompts (55)                20 %    2 %     36 %    83 %   58.9   12.2    1.76   5.99
    synthetic sentences (100)               0 %    0 %     58 %   154 %   28.6    9.1    2.57   7.02
    spoken questions (100)                 98 %   27 %    0.5 %    15 %   99.5   74.6    0.01   0.31
    spoken questions about pictures (400)  86 %   86 %                                   0.18   0.22
    written questions about them (200)     90 %   72 %                                   0.15   0.26
    descriptions of pictures (100)         92 %   91 %    3.1 %   3.7 %   94.8   94.1    0.06   0.07
    titles of drawings (200)                0 %    0 %    102 %    96 %    6.8    4.2    4.19   6.88

More steps change little: after 1,100 (57 minutes on idle cores), the answers about pictures are right in 87 % (plain: 87 %). The
rest are questions with the answer yes or no; others are nearly always answered rightly. So a plain decoder answers this narrow kind of
question as well; pretraining helps with everything else.

The most frequent answer to a question about a picture is right in 67 %. Whisper base itself transcribes the prompts with a WER of 5.4 %
without case and punctuation (this: 52 %, plain: 112 %, with both). Without the alignment, the CER of the prompts was 81 % after 500
steps. Titles are hardly learned: the image tower has only seen coloured shapes. The limit is the number of examples (14,000) that
two cores can train in two hours.

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
