"""Tokenizers in a run: prefixes by tags, ids that tasks can write, the command that trains one, files that are kept."""

import dataclasses
import json
import types

import numpy as np
import pytest
import soundfile
from conftest import tiny
from flax.traverse_util import flatten_dict
from test_text import A_PIECE, XLMR, sentencepiece_model, tokenizer_json

import mmjax
from mmjax import cli
from mmjax import config as c
from mmjax.data.layout import Layout
from mmjax.data.loader import Batches
from mmjax.data.sampler import Sampler
from mmjax.data.text import Tokenizer
from mmjax.errors import UserError
from mmjax.evaluate.predictions import predict_files
from mmjax.interchange import directories
from mmjax.train.build import build_layout, build_model, build_source, open_data
from mmjax.train.directory import UNTRAINED
from mmjax.train.step import init_parameters, unboxed
from mmjax.train.validate import check_config, check_data

WORDS = ["ein Hund", "le chat <fr> dort", "a dog", "☃ neige", "zwei Hunde und drei Katzen"]
PREFIXES = {"text": ("<{language}>",), "transcript": ("<{task}>", "<{language}>"), "target": ("<to>", "<{task}>")}
SPECIAL = ("<fr>", "<de>", "<en>", "<to>", "<hear>", "<write>")
ROWS = {"speech": 400, "text": 60, "transcript": 60, "target": 60, "examples": 4}


@pytest.fixture
def home(tmp_path):
    """Examples with and without each text and tag."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    lines = []
    for number in range(40):
        line = {name: WORDS[(number + place) % 5] for place, name in enumerate(("text", "transcript", "target"))}
        line |= {"speech": "a.wav", "language": ("fr", "de", "en")[number % 3], "task": ("hear", "write")[number % 2]}
        for bit, name in enumerate(("text", "transcript", "target", "language", "task")):
            if number >> bit & 1:
                del line[name]
        lines.append(json.dumps(line))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:6]))
    return tmp_path


def data(home, tokenizer, **changes):
    fields = dict(
        source=c.Manifest(splits={split: str(home / f"{split}.jsonl") for split in ("train", "test")}),
        directory=str(home / "cache"),
        tokenizer=tokenizer,
        rows=ROWS,
        subsets={"speech+text": 1.0},
        batch_rows=2,
    )
    return c.Data(**fields | changes)


def tokenizers(home):
    """One of each kind, which know the special tokens."""
    yield c.SentencePiece(vocabulary=330, special=SPECIAL)
    yield c.SentencePiece(vocabulary=60, byte_fallback=False, normalisation="identity", special=SPECIAL)
    (home / "unknown.model").write_bytes(sentencepiece_model(**XLMR, control_symbols=list(SPECIAL)))
    yield c.SentencePiece(file=str(home / "unknown.model"), special=SPECIAL)
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer.from_str(tokenizer_json("bert"))
    theirs.add_special_tokens(list(SPECIAL))
    theirs.save(str(home / "tokenizer.json"))
    yield c.HuggingFaceTokenizer(file=str(home / "tokenizer.json"))


def test_the_packer_writes_as_many_tokens_as_the_sampler_counted(home):
    """With prefixes, tokens around what is read, and unknown characters that labels do not hold."""
    first, *others = tokenizers(home)
    for tokenizer in (first, *others):
        source = build_source(data(home, tokenizer, prefixes=PREFIXES), "train")
        layout = Layout.of(ROWS, tokenizer=source.tokenizer)
        sampler = Sampler(layout.positions(source.sizes), ROWS, {"speech+text": 1.0}, 2, shuffle=False, epochs=1)
        batches, counted, special, seen = Batches(source, layout, sampler), layout.tokens(source.sizes), {}, 0
        for step in range(len(sampler)):
            batch = batches[step]
            numbers = batch["examples"]
            for row, slot in zip(*np.nonzero(numbers.segments), strict=True):
                number, seen = numbers.features[row, slot], seen + 1
                for name in ("text", "transcript", "target"):
                    ids = batch[name].features[row][batch[name].segments[row] == slot + 1]
                    assert len(ids) == counted[name][number], (tokenizer, name, number)
                    assert name == "text" or 0 not in ids
                    example = source[number]
                    shown = example.inputs.get(name, example.labels.get(name))
                    special.setdefault((name, number), source.tokenizer.decode(ids, special=True))
                    if len(ids) and tokenizer == first:
                        assert source.tokenizer.decode(ids) == shown
        assert not batches.skipped and seen == len(source)
        assert special["transcript", 0].replace(" ", "").startswith("<hear><fr>")
        assert special["target", 1].replace(" ", "").startswith("<to><write>")
        assert "<de>" in special["text", 4] and special["target", 16].replace(" ", "").startswith("<to>")
        assert "<fr>" not in special["text", 8] and "<de>" not in special["text", 8]  # no tag


@pytest.mark.parametrize(
    "prefixes, message",
    [
        (
            {"target": ("<{language}>",)},
            "data.prefixes.target: .* no special token '<de>' for the language 'de'; its special .*: <fr>. ",
        ),
        ({"target": ("<{language}-{task}>",)}, "no special token '<..-.*>' for the language '..' and task '.*'"),
        ({"target": ("<to>",)}, "no special token '<to>'; .*data.tokenizer.special"),
        ({"target": ("<{lang}>",)}, "'lang' in '<{lang}>' is not a tag.*language"),
        ({"target": ("<{language>",)}, "data.prefixes.target: '<{language>' cannot be read"),
        ({"targets": ("<fr>",)}, "'targets' is not a text stream; did you mean 'target'"),
    ],
)
def test_a_prefix_that_cannot_be_is_said_at_the_start(home, prefixes, message):
    with pytest.raises(UserError, match=message):
        build_source(data(home, c.SentencePiece(vocabulary=330, special=("<fr>",)), prefixes=prefixes), "train")


def test_prefixes_need_a_tokenizer_and_a_collection(home):
    whole = data(home, c.SentencePiece(), prefixes={"text": ("<to>",)})
    for changes in ({"tokenizer": None}, {"source": c.SpokenEasyVQA()}):
        with pytest.raises(UserError, match="data.prefixes need data.tokenizer"):
            check_config(tiny(data=dataclasses.replace(whole, **changes)))


def test_a_file_must_have_the_special_tokens(home):
    (home / "a.model").write_bytes(sentencepiece_model(**XLMR))
    with pytest.raises(UserError, match="a.model has no control piece '<fr>'"):
        build_source(data(home, c.SentencePiece(file=str(home / "a.model"), special=("<fr>",))), "train")


def test_the_tokenizer_of_other_special_tokens_is_another(home):
    made = [
        build_source(data(home, c.SentencePiece(vocabulary=330, special=s)), "train").tokenizer for s in ((), SPECIAL)
    ]
    assert list(made[1].special) == list(SPECIAL) and not made[0].special and len(made[0]) == len(made[1]) == 330


# What tasks can write. ------------------------------------------------------------------------------------

WRITERS = {
    "CTC": lambda outputs, _: c.CTC(outputs=outputs),
    "Transducer": lambda outputs, _: c.Transducer(outputs=outputs, width=8),
    "Write": lambda outputs, end: c.Write(
        reads=("speech",), decoder=c.TextDecoder(vocabulary=outputs), start_token=end, end_token=end
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_task_has_an_output_for_the_blank_or_the_end_where_id_0_is_a_piece(home, kind):
    """Where id 0 is the unknown piece, labels leave it out, and 0 is the blank, or the end of a text."""
    encoders = {name: tiny().model.encoders[name] for name in ("speech", "text")}
    for options, blank in ((A_PIECE, 1), (XLMR, 0)):
        (home / "a.model").write_bytes(sentencepiece_model(**options))
        chosen = data(home, c.SentencePiece(file=str(home / "a.model")))
        source = build_source(chosen, "train")
        pieces = len(source.tokenizer)
        end = source.tokenizer.blank
        assert end == (pieces if blank else 0) and end not in source.tokenizer.encode("a red circle")
        for missing in (0, 1):
            outputs = pieces + blank - missing
            model = c.Multimodal(encoders=encoders, tasks={"transcript": WRITERS[kind](outputs, end)})
            config = tiny(data=chosen, model=model)
            if missing:
                with pytest.raises(
                    UserError, match=f"={outputs}, but the tokenizer has {pieces} pieces.*write {pieces + blank}"
                ):
                    check_data(config, source)
            else:
                check_data(config, source)
        if blank and kind == "Write":
            model = c.Multimodal(encoders=encoders, tasks={"transcript": WRITERS[kind](pieces, 0)})
            with pytest.raises(
                UserError,
                match="set model.tasks.transcript.start_token and .*end_token to ids of its special tokens(, such as|;)",
            ):
                check_data(tiny(data=chosen, model=model), source)
        model = c.Multimodal(encoders=encoders, tasks={"text": c.LanguageModel(outputs=pieces)})
        check_data(tiny(data=chosen, model=model), source)


def test_a_mask_is_no_piece(home):
    (home / "a.model").write_bytes(sentencepiece_model(**A_PIECE))
    chosen = data(home, c.SentencePiece(file=str(home / "a.model")))
    encoders = {"text": tiny().model.encoders["text"]}
    for mask in (0, 1):
        model = c.Multimodal(encoders=encoders, tasks={"hidden": c.MaskedTokens(mask=mask)})
        config = tiny(data=chosen, model=model)
        if mask == 0:
            with pytest.raises(UserError, match="model.tasks.hidden.mask is 0"):
                open_data(config)
        else:
            open_data(config)


# A run. ---------------------------------------------------------------------------------------------------


def writing(home, tokenizer, pieces):
    """A config that reads a text and writes another."""
    rows = {"text": 40, "target": 40, "examples": 2}
    block = dict(layers=1, width=16, heads=2, mlp=32)
    model = c.Multimodal(
        encoders={"text": c.Transformer(vocabulary=pieces, **block)},
        tasks={"target": c.Write(reads=("text",), label="target", decoder=c.TextDecoder(vocabulary=pieces, **block))},
    )
    return tiny(
        data=data(
            home, tokenizer, rows=rows, subsets={"text": 1.0}, prefixes={k: PREFIXES[k] for k in ("text", "target")}
        ),
        model=model,
        steps=2,
        evaluation=c.Evaluation(subsets=("text",)),
    )


@pytest.mark.slow
def test_a_run_keeps_its_tokenizer_of_either_kind(home, capsys, monkeypatch):
    from mmjax.run import Run
    from mmjax.tasks import text
    from mmjax.train.directory import open_run
    from mmjax.train.loop import train

    seen = []
    metrics = text.text_metrics
    monkeypatch.setattr(text, "text_metrics", lambda r, h, names: seen.extend(r) or metrics(r, h, names))
    *_, tokenizer = tokenizers(home)
    config = writing(home, tokenizer, len(Tokenizer.load(home / "tokenizer.json")))
    result = train(config, home / "run")
    assert "target/cer" in result["text"]
    assert seen and not any("<to>" in text or "<hear>" in text for text in seen), "prefixes are not judged"
    assert (home / "run" / "tokenizer.json").is_file() and not (home / "run" / "tokenizer.model").exists()
    (home / "tokenizer.json").unlink()  # the run has its own
    run = Run(home / "run")
    assert run.tokenizer.read("a dog") == Tokenizer.load(home / "run" / "tokenizer.json").read("a dog")
    capsys.readouterr()
    assert cli.main(["predict", str(home / "run"), "--text", "a dog", "--language", "fr", "--json"]) == 0
    with_tag = json.loads(capsys.readouterr().out)
    assert isinstance(with_tag["target"], str)
    assert cli.main(["predict", str(home / "run"), "--text", "a dog", "--language", "xx"]) == 2
    assert "no special token '<xx>'" in capsys.readouterr().err
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, prefixes={}))
    (home / "other").mkdir()
    (home / "tokenizer.json").write_text(tokenizer_json("bert"))
    source = build_source(config.data, "train")
    open_run(config, home / "other", source)
    (home / "tokenizer.json").write_text(tokenizer_json("t5"))
    with pytest.raises(UserError, match="trained with another tokenizer"):
        open_run(config, home / "other", build_source(config.data, "train"))
    open_run(config, home / "other", build_source(config.data, "train", home / "other"))  # with its own


def test_a_tag_is_for_runs_that_read_it():
    from mmjax.run import Run

    with pytest.raises(
        UserError, match="this run does not use --language: no token of its data.prefixes depends on it"
    ):
        Run.check_tags(types.SimpleNamespace(_prefixes=None), {"language": "fr"})


@pytest.mark.slow
def test_rows_of_a_table_have_their_own_tags(home):
    """Several in a row, of which each begins with the tokens of its tags: the texts are those of one by one."""
    *_, tokenizer = tokenizers(home)
    loaded = Tokenizer.load(home / "tokenizer.json")
    config = writing(home, tokenizer, len(loaded))
    task = config.model.tasks["target"].clone(given=2)
    config = dataclasses.replace(config, model=config.model.clone(tasks={"target": task}))
    params = unboxed(init_parameters(build_model(config.model), build_layout(config, loaded).empty(1), 0))
    directories.write(home / "run", flatten_dict(params, sep="/"), UNTRAINED, {"config.json": c.to_dict(config)})
    for name, content in loaded.files.items():
        (home / "run" / name).write_bytes(content)
    run, table = mmjax.open(home / "run"), home / "table.jsonl"
    rows = [{"text": WORDS[n], "language": ("fr", "de", "en")[n], "task": ("hear", "write")[n % 2]} for n in range(3)]
    table.write_text("".join(json.dumps(row | {"target": "not read"}) + "\n" for row in rows))
    predict_files(run, run.examples([], str(table)), home / "out.jsonl")
    found = [json.loads(line)["target"] for line in (home / "out.jsonl").read_text().splitlines()]
    tags = [{name: row[name] for name in ("language", "task")} for row in rows]
    alone = [run.predict(text=row["text"], tags=own)["target"] for row, own in zip(rows, tags, strict=True)]
    assert found == alone and len(set(found)) > 1
    examples = [{"text": row["text"], "tags": own} for row, own in zip(rows, tags, strict=True)]
    assert [one["target"] for one in run.predict_many(examples)] == alone


# The command. ---------------------------------------------------------------------------------------------

CONFIG = """
from mmjax import config as c
from conftest import tiny
import dataclasses
source = c.Manifest(splits={{"train": "{home}/train.jsonl", "test": "{home}/test.jsonl"}})
data = c.Data(source=source, tokenizer={tokenizer}, directory="{home}/cache", rows={{"text": 60, "examples": 2}}, subsets={{"text": 1.0}})
config = tiny(data=data)
"""


def test_the_command_trains_what_the_run_would(home, capsys):
    (home / "config.py").write_text(
        CONFIG.format(home=home, tokenizer='c.SentencePiece(vocabulary=330, special=("<fr>",))')
    )
    source = build_source(c.load(home / "config.py").data, "train")
    command = ["data", "tokenizer", str(home / "config.py"), "--json"]
    assert cli.main([*command, "-o", str(home / "a.model")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (home / "a.model").read_bytes() == source.tokenizer.serialised
    ids = [source.tokenizer.encode(text) for text in WORDS]
    tokens = sum(map(len, ids))
    bytes_ = sum(i in source.tokenizer.byte_pieces for one in ids for i in one)
    assert found == {
        "pieces": 330,
        "texts": 5,
        "tokens": tokens,
        "characters_per_token": pytest.approx(sum(map(len, WORDS)) / tokens),
        "unknown": 0.0,
        "bytes": pytest.approx(bytes_ / tokens),
    }
    flags = ["--vocabulary", "60", "--no-byte-fallback", "--normalisation", "identity", "--special", "<de>", "<en>"]
    assert cli.main([*command, *flags]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["pieces"] == 60 and other["bytes"] == 0.0
    assert cli.main([*command[:3], "--normalisation", "nfd"]) == 2
    assert "data.tokenizer.normalisation must be one of" in capsys.readouterr().err


def test_the_command_takes_a_path_and_measures_a_file(home, capsys, monkeypatch):
    monkeypatch.setenv("MMJAX_DATA", str(home / "cache"))
    out = home / "new" / "b.model"
    command = ["data", "tokenizer", str(home / "train.jsonl"), "--vocabulary", "320", "-o", str(out)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("320 pieces, ") and "0.00 % unknown" in printed and f"see {out}" in printed
    assert len(Tokenizer.load(out)) == 320
    (home / "x.model").write_bytes(sentencepiece_model(**XLMR))
    (home / "config.py").write_text(CONFIG.format(home=home, tokenizer=f'c.SentencePiece(file="{home}/x.model")'))
    assert cli.main(["data", "tokenizer", str(home / "config.py"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown"] > 0  # the snowman
    assert cli.main(["data", "tokenizer", str(home / "config.py"), "--vocabulary", "50"]) == 2
    assert "is already trained; leave out --vocabulary" in capsys.readouterr().err


@pytest.mark.reference
def test_an_imported_model_keeps_its_tokenizer(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from mmjax.interchange.convert import certificate, export_model, import_model

    monkeypatch.setattr(certificate, "certify", lambda *a: {"skipped": "of no interest here"})

    settings = transformers.BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(settings).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text(tokenizer_json("bert"))
    (tmp_path / "theirs" / "spiece.model").write_bytes(b"theirs")
    import_model(tmp_path / "theirs", tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "back")
    for name in ("tokenizer.json", "spiece.model"):
        for place in ("ours", "back"):
            assert (tmp_path / place / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
