"""`mmjax check` holds for every encoder, in the settings of its presets, and for every task."""

import dataclasses
import json
import subprocess
import sys

import pytest
from conftest import tiny
from test_answers import CONFIG as ANSWERS
from test_denoiser import denoising
from test_masking import pretraining
from test_writers import joint

from mmjax import config as c
from mmjax.train.validate import check_config

SMALL = dict(layers=1, width=16, heads=2)
STEM = c.StridedStem(channels=4)
FAST_STEM = c.StridedStem(channels=4, subsampling=8, depthwise=True)
PICTURE = dict(patch=8, image_size=64, mlp=32, **SMALL)
TEXT = dict(vocabulary=128, mlp=32, **SMALL)


def with_model(config, **parts):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **parts))


def encoders(rows=(), **changes):
    config = tiny()
    data = dataclasses.replace(config.data, rows={**config.data.rows, **dict(rows)})
    return dataclasses.replace(with_model(config, encoders={**config.model.encoders, **changes}), data=data)


def paired(rule, **changes):
    return with_model(tiny(), tasks={"pair": c.Contrast(between=("image", "text"), outputs=8, rule=rule, **changes)})


def vocabulary():
    config = tiny()
    text = dataclasses.replace(config.model.encoders["text"], causal=True)
    encoders = {**config.model.encoders, "text": text}
    return with_model(
        config, encoders=encoders, tasks={"text": c.LanguageModel(outputs=200, chunk=64, label_smoothing=0.1)}
    )


def continued():
    """Without CTC, whose gradient over 200 untrained frames float32 knows to 5e-5 only."""
    speech = c.WhisperEncoder(mlp=32, length=200, pad_to_length=True, **SMALL)
    config = encoders(rows={"speech": 800}, speech=speech)
    return with_model(config, tasks={"answer": config.model.tasks["answer"]})


STREAMING = c.Conformer.preset(
    "modern S",
    front_end=c.MFCC(),
    stem=FAST_STEM,
    convolution=c.Convolution(kernel=9, norm="rms", causal=True),
    chunks=c.Chunking(size=4, left=2),
    **SMALL,
)
CONFIGS = {
    "Conformer S; ViT with a class token; BERT": lambda: encoders(
        rows={"image": 130},
        speech=c.Conformer.preset("S", front_end=c.KaldiFilterBank(), stem=STEM, **SMALL),
        image=c.ViT.preset("Ti/8", class_token=True, **{k: v for k, v in PICTURE.items() if k != "patch"}),
        text=c.Transformer(positions=c.Learned(), types=2, block=c.BlockStyle(post_norm=True), **TEXT),
    ),
    "Conformer NeMo L; ViT sincos; causal text of grouped heads": lambda: encoders(
        speech=c.Conformer.preset("NeMo L", front_end=c.NeMoLogMel(), stem=STEM, **SMALL),
        image=c.ViT(positions=c.SinCos(), block=c.BlockStyle(layer_scale=0.1), **PICTURE),
        text=c.Transformer(
            causal=True, block=c.BlockStyle(norm="rms", gated=True, bias=False, key_value_heads=1), **TEXT
        ),
    ),
    "FastConformer; ViT of native resolution with registers; ModernBERT": lambda: encoders(
        rows={"speech": 336},
        speech=c.Conformer.preset("Fast L", front_end=c.NeMoLogMel(), stem=FAST_STEM, **SMALL),
        image=c.ViT(max_patches=40, class_token=True, registers=2, positions=c.Rotary(), **PICTURE),
        text=c.Transformer(
            sliding_window=c.SlidingWindow(window=3, full_layers=(0,), positions=c.Rotary(base=100.0)),
            embedding_norm=True,
            block=c.BlockStyle(norm="layer_without_bias", gated=True, bias=False),
            **TEXT,
        ),
    ),
    "modern Conformer in causal chunks; ConvNet; MeanEmbedding": lambda: encoders(
        rows={"speech": 336},
        speech=STREAMING,
        image=c.ConvNet(patch=8, image_size=64, width=16),
        text=c.MeanEmbedding(vocabulary=128, width=16),
    ),
    "BiLSTM": lambda: encoders(speech=c.BiLSTM(layers=1, width=16)),
    "CNN-LSTM": lambda: encoders(speech=c.BiLSTM(layers=1, width=16, stem="depthwise", stem_channels=4)),
    "Whisper": lambda: encoders(speech=c.WhisperEncoder(mlp=32, length=200, **SMALL)),
    "Whisper, recordings continued with silence": continued,
    "CTC, attention decoder and transducer": joint,
    "CTC over the embeddings of a language model": lambda: with_model(
        tiny(), tasks={"transcript": c.EmbeddingCTC(projector=c.MLP(stack=2), width=16, outputs=128)}
    ),
    "focal classification": lambda: with_model(
        tiny(), tasks={**tiny().model.tasks, "answer": c.Classify(outputs=13, gamma=2.0, label_smoothing=0.1)}
    ),
    "masked text, patches and speech": pretraining,
    "enhancement": denoising,
    "adapters": lambda: dataclasses.replace(
        tiny(),
        adapters={"**": c.LoRA(rank=2, dora=True)},
        optimizer=dataclasses.replace(tiny().optimizer, groups={"encoders": c.Group(frozen=True, dtype="int8")}),
    ),
    "SigLIP": lambda: paired("sigmoid"),
    "CLIP": lambda: paired("softmax", limit=100.0),
    "a large vocabulary": vocabulary,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_a_config_that_may_be_trained(name):
    check_config(CONFIGS[name]())


def holds(path):
    process = subprocess.run([sys.executable, "-m", "mmjax", "check", path, "--json"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr + process.stdout
    assert all(result["holds"] for result in json.loads(process.stdout).values())


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_all_five_invariants_hold(name, tmp_path):
    (tmp_path / "config.json").write_text(c.to_json(CONFIGS[name]()))
    holds(str(tmp_path / "config.json"))


@pytest.mark.long
@pytest.mark.parametrize(
    "kind, task", [("labels", "c.MultiLabel(gamma=1.0)"), ("numbers", "c.Regress(difference='huber')")]
)
def test_all_five_invariants_hold_for_answers_of_several_numbers(kind, task, tmp_path):
    path = tmp_path / "lamps.py"
    path.write_text(ANSWERS.replace("KIND", repr(kind)).replace("TASK", task))
    holds(str(path))
