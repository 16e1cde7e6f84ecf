"""Presets of language models and of their towers are the parts that an import of the published model gives."""

import jax
import numpy as np
import pytest

from mmjax import config as c
from mmjax.interchange import gpt2, llama, siglip, whisper
from mmjax.stream import Stream

LLAMA = dict(model_type="llama", hidden_act="silu", rms_norm_eps=1e-5, tie_word_embeddings=True)
SCALED = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3")
LLAMA_3 = LLAMA | dict(vocab_size=128_256, rope_theta=500_000.0, num_key_value_heads=8)
QWEN_3 = dict(model_type="qwen3", hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=True, head_dim=128)
QWEN_3 |= dict(vocab_size=151_936, rope_theta=1_000_000, num_key_value_heads=8, num_hidden_layers=28)
SMOLLM_2 = LLAMA | dict(vocab_size=49_152)


def sizes(layers, width, heads, mlp, **more):
    return more | dict(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=mlp)


# The options in the config.json that is published with each model, and its number of parameters.
DECODERS = {
    "GPT-2": (
        dict(model_type="gpt2", vocab_size=50_257, n_layer=12, n_embd=768, n_head=12, n_positions=1024)
        | dict(layer_norm_epsilon=1e-5, activation_function="gelu_new"),
        124_439_808,
    ),
    "Llama 2 7B": (
        LLAMA | sizes(32, 4096, 32, 11_008, vocab_size=32_000, num_key_value_heads=32, tie_word_embeddings=False),
        6_738_415_616,
    ),
    "Llama 2 70B": (
        LLAMA | sizes(80, 8192, 64, 28_672, vocab_size=32_000, num_key_value_heads=8, tie_word_embeddings=False),
        68_976_648_192,
    ),
    "Llama 3.1 8B": (
        LLAMA_3 | sizes(32, 4096, 32, 14_336, rope_scaling=SCALED | {"factor": 8.0}, tie_word_embeddings=False),
        8_030_261_248,
    ),
    "Llama 3.2 1B": (
        LLAMA_3 | sizes(16, 2048, 32, 8192, rope_scaling=SCALED | {"factor": 32.0}, head_dim=64),
        1_235_814_400,
    ),
    "Llama 3.2 3B": (
        LLAMA_3 | sizes(28, 3072, 24, 8192, rope_scaling=SCALED | {"factor": 32.0}, head_dim=128),
        3_212_749_824,
    ),
    "Mistral 7B": (
        LLAMA
        | dict(model_type="mistral", vocab_size=32_000, sliding_window=4096, rope_theta=10_000.0)
        | sizes(32, 4096, 32, 14_336, num_key_value_heads=8, tie_word_embeddings=False),
        7_241_732_096,
    ),
    "Qwen3 0.6B": (QWEN_3 | sizes(28, 1024, 16, 3072), 596_049_920),
    "Qwen3 1.7B": (QWEN_3 | sizes(28, 2048, 16, 6144), 1_720_574_976),
    "Qwen3 8B": (QWEN_3 | sizes(36, 4096, 32, 12_288, tie_word_embeddings=False), 8_190_735_360),
    "Gemma 3 1B": (
        dict(model_type="gemma3_text", vocab_size=262_144, num_key_value_heads=1, head_dim=256, rms_norm_eps=1e-6)
        | dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=256, rope_theta=1_000_000)
        | dict(rope_local_base_freq=10_000, sliding_window=512, sliding_window_pattern=6)
        | sizes(26, 1152, 4, 6912),
        999_885_952,
    ),
    "SmolLM2 135M": (SMOLLM_2 | sizes(30, 576, 9, 1536, num_key_value_heads=3, rope_theta=100_000), 134_515_008),
    "SmolLM2 360M": (SMOLLM_2 | sizes(32, 960, 15, 2560, num_key_value_heads=5, rope_theta=100_000), 361_821_120),
    "SmolLM2 1.7B": (SMOLLM_2 | sizes(24, 2048, 32, 8192, num_key_value_heads=32, rope_theta=130_000), 1_711_376_384),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_language_model_is_the_imported_one(name):
    theirs, parameters = DECODERS[name]
    family = gpt2 if theirs["model_type"] == "gpt2" else llama
    ours = c.TextDecoder.preset(name)
    assert ours == family.part({"architectures": ["XForCausalLM"], **theirs})
    tokens = np.zeros((1, 4), np.int32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), Stream(tokens, tokens + 1, tokens))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(
    "name, layers, width, heads, bins",
    [("small", 12, 768, 12, 80), ("large-v3", 32, 1280, 20, 128), ("large-v3-turbo", 32, 1280, 20, 128)],
)
def test_whispers_encoder_is_the_imported_one(name, layers, width, heads, bins):
    options = dict(encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width, d_model=width)
    options |= dict(num_mel_bins=bins, max_source_positions=1500, activation_function="gelu")
    theirs = whisper.part({"architectures": ["WhisperForConditionalGeneration"], **options})
    assert c.WhisperEncoder.preset(name, pad_to_length=True) == theirs


@pytest.mark.parametrize(
    "name, size, options",
    [
        ("SigLIP B/16", 256, dict(patch_size=16)),  # google/siglip2-base-patch16-256
        ("SigLIP So400m/14", 384, dict(patch_size=14) | sizes(27, 1152, 16, 4304)),  # google/siglip-so400m-patch14-384
    ],
)
def test_siglips_image_tower_is_the_imported_one(name, size, options):
    theirs = siglip.part({"model_type": "siglip_vision_model", "image_size": size, **options})
    assert c.ViT.preset(name, image_size=size) == theirs
