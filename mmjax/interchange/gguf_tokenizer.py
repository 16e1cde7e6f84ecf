"""The tokenizer of a GGUF file, as the documents tokenizer.json and tokenizer_config.json of Hugging Face."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.errors import UserError

# How texts are divided into words before byte pairs are merged, by "tokenizer.ggml.pre".
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3, QWEN_2 = rf"{_LETTERS}\p{{N}}{{1,3}}{_OTHERS}", rf"{_LETTERS}\p{{N}}{_OTHERS}"


def _split(pattern: str) -> list[dict[str, Any]]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level]


_GPT_2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT_2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT_2],
    "llama-bpe": _split(LLAMA_3),
    "qwen2": _split(QWEN_2),
}
PRE_TOKENIZERS |= {name: PRE_TOKENIZERS["llama-bpe"] for name in ("llama3", "llama-v3")}
PRE_TOKENIZERS["deepseek-r1-qwen"] = PRE_TOKENIZERS["qwen2"]
WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # a word in the vocabulary is a token, whatever the merges
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # kinds of tokens
SPACE = "▁"


def documents(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json from the options of a GGUF file.

    Raises:
      UserError: a kind of tokenizer that is not supported.
    """
    kind, tokens = options.get("tokenizer.ggml.model"), options.get("tokenizer.ggml.tokens", ())
    if kind not in ("gpt2", "llama"):
        raise UserError(f"cannot import tokenizer.ggml.model={kind!r}; only 'gpt2' or 'llama'")
    made = _byte_level(options, tokens) if kind == "gpt2" else _sentencepiece(options, tokens)
    kinds = options["tokenizer.ggml.token_type"]
    added = [(i, tokens[i], kinds[i]) for i in range(len(tokens)) if kinds[i] in (UNKNOWN, CONTROL, USER_DEFINED)]
    begins, begin = options.get("tokenizer.ggml.add_bos_token"), _named(options, tokens, "bos")
    if begins is None:
        begins = kind == "llama" or options["tokenizer.ggml.pre"] in WHOLE_WORDS  # llama.cpp's defaults
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token, special=kind != USER_DEFINED) for i, token, kind in added],
        "post_processor": _beginning(begin, tokens.index(begin)) if begins and begin else None,
    }
    names = {f"{name}_token": _named(options, tokens, name) for name in ("bos", "eos")}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", **{k: v for k, v in names.items() if v is not None}}
    return {"tokenizer.json": whole | made, "tokenizer_config.json": about}


def _named(options: Mapping[str, Any], tokens: Sequence[str], name: str) -> str | None:
    number = options.get(f"tokenizer.ggml.{name}_token_id")
    return None if number is None else tokens[number]


def _added(number: int, token: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}


def _beginning(token: str, number: int) -> dict[str, Any]:
    """A post-processor that puts a token before a text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    single = [first, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _bpe(tokens: Sequence[str], merges: Sequence[Sequence[str]], **changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return {"type": "BPE", **nothing, **flags, "vocab": vocabulary, "merges": [list(x) for x in merges], **changes}


def _byte_level(options: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """GPT-2's kind: byte pairs within words."""
    pre = options.get("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        raise UserError(f"cannot import tokenizer.ggml.pre={pre!r}; only {', '.join(PRE_TOKENIZERS)}")
    merges = [merge.split(" ") for merge in options["tokenizer.ggml.merges"]]
    return {
        "normalizer": {"type": "NFC"} if PRE_TOKENIZERS[pre] is PRE_TOKENIZERS["qwen2"] else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(tokens, merges, ignore_merges=pre in WHOLE_WORDS),
    }


def _sentencepiece(options: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """Llama 2's and Gemma's kind: sentencepiece's byte pairs, over spaces, with bytes for unknown characters.

    sentencepiece joins the two neighbours whose union has the highest score; the merges are these unions in order.
    """
    scores, kinds, known = options["tokenizer.ggml.scores"], options["tokenizer.ggml.token_type"], set(tokens)
    merges = []
    for token, score, kind in zip(tokens, scores, kinds, strict=True):
        if kind == 1:  # a normal piece
            splits = ((token[:at], token[at:]) for at in range(1, len(token)))
            merges += [(-score, left, right) for left, right in splits if left in known and right in known]
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    first = [{"type": "Prepend", "prepend": SPACE}] if options.get("tokenizer.ggml.add_space_prefix", True) else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if first else []
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    restored = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [restored, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    merges = [pair for _, *pair in sorted(merges, key=lambda merge: (merge[0], len(merge[1]), len(merge[2])))]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, replaced]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(tokens, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }
