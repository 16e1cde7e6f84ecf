"""GGUF files: imported as transformers reads them, with their tokenizer."""

import io
import json
import pathlib
import re
import sys
import unicodedata

import numpy as np
import pytest
import sentencepiece

from mmjax import config as c
from mmjax.cli import main
from mmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from mmjax.interchange import gguf_file, gguf_tokenizer, llama
from mmjax.interchange.convert import export_model, import_model
from mmjax.interchange.directories import read_tensors

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")

SIZES = dict(
    vocab_size=40,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    head_dim=32,
)
WORDS = ["<unk>", "<s>", "</s>", "<|im_end|>", *"abcdefghijkl", "Ġ", "ab", "Ġa", "abc", "Ġab", *"0123", "Ċ", "é"]
WORDS += [f"<{i}>" for i in range(40 - len(WORDS))]
MERGES = ["a b", "Ġ a", "ab c", "Ġ ab"]


def save(path, architecture="llama", model=None, dtype="F32", skip=(), factors=None, **options):
    """A GGUF file of a model of transformers, as llama.cpp's converter writes it (without a model: of zeros).

    Args:
      factors: of the scaling of Llama 3.1, if there is one: the largest.
      options: by their names in GGUF, with "__" for "."; None leaves one out.
    """
    config = model.config.to_dict() if model else SIZES
    layers, heads, groups = (config[f"num_{x}"] for x in ("hidden_layers", "attention_heads", "key_value_heads"))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(1e-6)
    known = {f"{architecture}__rope__freq_base": 1e4}
    known |= dict(tokenizer__ggml__model="gpt2", tokenizer__ggml__pre="smollm", tokenizer__ggml__tokens=WORDS)
    known |= dict(tokenizer__ggml__merges=MERGES, tokenizer__ggml__token_type=[2, 3, 3, 4] + [1] * (len(WORDS) - 4))
    known |= dict(tokenizer__ggml__bos_token_id=1, tokenizer__ggml__eos_token_id=2, tokenizer__ggml__eot_token_id=3)
    for name, value in (known | options).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(name.replace("__", "."), value)
    names = gguf.get_tensor_name_map({n: k for k, n in gguf.MODEL_ARCH_NAMES.items()}[architecture], layers)
    kind = gguf.GGMLQuantizationType[dtype]
    for name, tensor in model.state_dict().items() if model else [("model.embed_tokens.weight", np.zeros((40, 64)))]:
        x = np.asarray(tensor, np.float32)
        if name in skip:
            continue
        if architecture in ("llama", "smollm3") and re.search("[qk]_proj", name):
            count = heads if "q_proj" in name else groups
            x = x.reshape(count, 2, len(x) // count // 2, -1).swapaxes(1, 2).reshape(x.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            x = x + 1
        stored = names.get_name(name, (".weight", ".bias"))
        if x.ndim > 1 and dtype != "F32":
            writer.add_tensor(stored, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, x)
    if factors:
        rotations = 8192 * 1e4 ** (-np.arange(16) / 16) / (2 * np.pi)
        smooth = ((rotations - 1) / 3).clip(0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / factors + smooth)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def randomised(family, **changes):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**SIZES | dict(bos_token_id=1, eos_token_id=2) | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(settings)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.rand(value.shape) - 0.1)
    return model.eval()


LLAMA_3_1 = dict(rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA_3_1 |= dict(original_max_position_embeddings=8192)
GEMMA = dict(sliding_window=5, query_pre_attn_scalar=32, tie_word_embeddings=True, pad_token_id=0)
FILES = {
    "Llama": ("llama", "Llama", {}, {}),
    "Llama in Q8_0": ("llama", "Llama", {}, {"dtype": "Q8_0"}),
    "Llama in Q4_0": ("llama", "Llama", {"tie_word_embeddings": True}, {"dtype": "Q4_0", "skip": ["lm_head.weight"]}),
    "Llama 3.1": ("llama", "Llama", {"rope_parameters": LLAMA_3_1}, {"factors": 8.0}),
    "Mistral": ("llama", "Mistral", {"sliding_window": 5}, {"llama__attention__sliding_window": 5}),
    "SmolLM3": (
        "smollm3",
        "SmolLM3",
        {"num_hidden_layers": 5, "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"skip": ["lm_head.weight"]},
    ),
    "Llama in bfloat16": ("llama", "Llama", {}, {"dtype": "BF16"}),
    "Qwen2 in float16": ("qwen2", "Qwen2", {"head_dim": 16}, {"dtype": "F16"}),
    "Qwen3 in Q4_1": ("qwen3", "Qwen3", {}, {"dtype": "Q4_1"}),
    "Gemma 2": (
        "gemma2",
        "Gemma2",
        GEMMA,
        {
            "skip": ["lm_head.weight"],
            "gemma2__attention__sliding_window": 5,
            "gemma2__attn_logit_softcapping": 50.0,
            "gemma2__final_logit_softcapping": 30.0,
        },
    ),
    "Gemma 3": (
        "gemma3",
        "Gemma3",
        GEMMA,
        {"skip": ["lm_head.weight"], "gemma3__attention__sliding_window": 5, "gemma3__rope__freq_base": 1e6},
    ),
    "Gemma 3 with scaled positions": (
        "gemma3",
        "Gemma3",
        GEMMA
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
        {
            "skip": ["lm_head.weight"],
            "gemma3__attention__sliding_window": 5,
            "gemma3__rope__scaling__type": "linear",
            "gemma3__rope__scaling__factor": 8.0,
        },
    ),
}


@pytest.mark.reference
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_imported_as_transformers_reads_it(tmp_path, name):
    architecture, family, changes, stored = FILES[name]
    model, path = randomised(family, **changes), tmp_path / "model.gguf"
    save(path, architecture, model, **stored)
    assert import_model(path, tmp_path / "ours")["certificate"]["holds"]
    assert c.imported(tmp_path / "ours") == llama.part(
        model.config.to_dict() | {"architectures": [type(model).__name__]}
    )
    export_model(tmp_path / "ours", tmp_path / "back")
    ours = read_tensors(tmp_path / "back")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    if family in ("SmolLM3", "Mistral"):  # which transformers does not read from GGUF
        theirs = {key: value for key, value in model.state_dict().items() if key not in stored.get("skip", ())}
    else:
        theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert set(ours) == set(theirs)
    for key, x in ours.items():
        np.testing.assert_allclose(x.astype(np.float32), theirs[key].float().numpy(), atol=1e-6, err_msg=key)


# Tokenizers. -----------------------------------------------------------------------------------------------

HERE = pathlib.Path(__file__).parent
TEXTS = [
    "",
    "abc",
    " In 1969 I'LL say: don't!",
    "a  b\n\n c\r\n\td ",
    "héllo wörld 你好 👋🏽 ½",
    "x=12345+6.7; y_1 <s>",
    "\u0301e",
]


def byte_level(pattern, individual_digits=False):
    """A tokenizer of GPT-2's kind, trained on this file, with this division of texts into words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    split += [pre_tokenizers.Digits(individual_digits=True)] if individual_digits else []
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, words])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train([__file__], trainer)
    return tokenizer


# By transformers: the tokenizers of Llama 3 (`LlamaConverter`'s successor for tiktoken), Qwen2, GPT-2 and SmolLM2.
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE = {
    "gpt-2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (LLAMA_3, False),
    "qwen2": (LLAMA_3.replace("{1,3}", ""), False),
}


def tokens_of(path):
    return HuggingFaceTokenizer(json.dumps(gguf_tokenizer.documents(gguf_file.read(path).options)["tokenizer.json"]))


@pytest.mark.parametrize("pre", PRE)
def test_byte_pairs_are_merged_within_the_words_of_each_family(tmp_path, pre):
    theirs = byte_level(*PRE[pre])
    model = json.loads(theirs.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    kinds = [3] + [1] * (len(vocabulary) - 1)
    options = dict(pre=pre, tokens=vocabulary, merges=merges, token_type=kinds, bos_token_id=0)
    path = tmp_path / "model.gguf"
    save(path, **{f"tokenizer__ggml__{name}": value for name, value in options.items()})
    ours = tokens_of(path)
    theirs.encode_special_tokens = True
    for text in TEXTS:
        text = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        expected = theirs.encode(text).ids
        assert ours.pieces(text) == expected, text
        assert ours.decode(expected) == text
        assert ours.read(text) == ([0, *expected] if pre == "llama-bpe" else expected)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_model_gives_the_tokens_of_sentencepiece(tmp_path, prefix):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        input=__file__,
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=["<turn>"],
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(len(theirs))
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 4 if i == 3 else 1
        for i in ids
    ]
    options = dict(model="llama", pre="default", tokens=[theirs.id_to_piece(i) for i in ids], token_type=kinds)
    options |= dict(scores=[theirs.get_score(i) for i in ids], add_space_prefix=prefix, merges=None)
    path = tmp_path / "model.gguf"
    save(path, **{f"tokenizer__ggml__{name}": value for name, value in options.items()})
    ours = tokens_of(path)
    for text in [*TEXTS, *HERE.joinpath("conftest.py").read_text().splitlines()[:200]]:
        expected = theirs.encode(text)
        assert ours.pieces(text) == expected, text
        assert ours.decode(expected) == theirs.decode(expected) == text
        assert ours.read(text) == [1, *expected]
    assert prefix or ours.pieces("a<turn>b") == theirs.encode("a<turn>b")
    about = gguf_tokenizer.documents(gguf_file.read(path).options)["tokenizer_config.json"]
    assert about["bos_token"] == "<s>" and about["eos_token"] == "</s>"


@pytest.mark.reference
def test_a_file_keeps_its_chat_template_and_all_tokens_that_end_a_text(tmp_path, monkeypatch):
    monkeypatch.setattr("mmjax.interchange.certificate.certify", lambda *_: {})
    path, template = tmp_path / "model.gguf", "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save(path, model=randomised("Llama"), tokenizer__chat_template=template)
    import_model(path, tmp_path / "ours")
    assert (tmp_path / "ours" / "chat_template.jinja").read_text() == template
    assert c.load(tmp_path / "ours" / "config.json").model.tasks["continuation"].ends == (2, 3)


@pytest.mark.parametrize(
    "architecture, options, message",
    [
        (
            "llama",
            {"tokenizer__ggml__token_type": None},
            "lacks an option, or is damaged (KeyError: 'tokenizer.ggml.token_type')",
        ),
        ("mamba", {}, "cannot import general.architecture='mamba'; only llama, qwen2, "),
        ("llama", {"llama__expert_count": 8}, "cannot import llama.expert_count=8; only 0"),
        ("llama", {"llama__rope__dimension_count": 16}, "cannot import llama.rope.dimension_count=16; only 32"),
        ("llama", {"tokenizer__ggml__pre": "tekken"}, "cannot import tokenizer.ggml.pre='tekken'; only gpt-2, "),
        (
            "llama",
            {"tokenizer__ggml__model": "bert"},
            "cannot import tokenizer.ggml.model='bert'; only 'gpt2' or 'llama'",
        ),
        (
            "llama",
            {"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 4.0},
            "rope_type='longrope'",
        ),
        (
            "llama",
            {},
            "the tensors of the GGUF file do not fit the model; missing: model.layers.0.input_layernorm.weight (blk.0.attn_norm.w",
        ),
    ],
)
def test_what_a_file_has_that_cannot_be_imported_is_named(tmp_path, capsys, architecture, options, message):
    save(tmp_path / "model.gguf", architecture, **options)
    assert main(["import", str(tmp_path / "model.gguf"), "-o", str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "ours").exists() and list(tmp_path.iterdir()) == [tmp_path / "model.gguf"]


def test_what_is_no_gguf_file_and_a_missing_library_are_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUV" + bytes(100))
    for message in ("cannot read", "needs the library gguf: pip install 'mmjax[gguf]'"):
        assert main(["import", str(tmp_path / "model.gguf"), "-o", str(tmp_path / "ours")]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        monkeypatch.setitem(sys.modules, "gguf", None)
