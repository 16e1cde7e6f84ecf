"""The commands as scripts use them: JSON alone on standard output, exit code 0 only on success, one-line errors."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import EXAMPLES, tiny
from PIL import Image

from mmjax import cli
from mmjax import config as c

DOCS = Path(__file__).parents[1] / "docs"


def mmjax(capsys, *arguments):
    code = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_eval_gives_all_seven_subsets(run, capsys):
    code, out, _ = mmjax(capsys, "eval", run, "--examples", 40, "--json")
    result = json.loads(out)
    assert code == 0 and (result["step"], result["split"]) == (6, "test")
    assert list(result["subsets"]) == [
        "speech",
        "image",
        "text",
        "speech+image",
        "speech+text",
        "image+text",
        "speech+image+text",
    ]
    for subset, metrics in result["subsets"].items():
        assert metrics["examples"] == 40
        assert 0 <= metrics["answer/accuracy"] <= 1
        assert ("transcript/cer" in metrics and "transcript/wer" in metrics) == ("speech" in subset)


def test_eval_says_how_metrics_are_computed(run, capsys):
    command = ("eval", run, "--examples", 9, "--subset", "speech")
    command += ("--model.tasks.transcript.measures", '("wer", "wer_basic", "bleu")')
    result = json.loads(mmjax(capsys, *command, "--json")[1])
    assert {"transcript/wer", "transcript/wer_basic", "transcript/bleu"} <= result["subsets"]["speech"].keys()
    assert list(result["signatures"]) == ["transcript/wer_basic", "transcript/bleu"]
    printed = " ".join(mmjax(capsys, *command)[1].split())
    assert "transcript WER (basic): lower case" in printed and "transcript BLEU: nrefs:1|case:mixed|" in printed


def test_eval_does_not_depend_on_how_examples_are_packed(run, capsys):
    """Trap A10 and H6: one row per example or many, the last batch full or not, the metrics are the same."""
    from mmjax.evaluate.evaluation import Evaluator
    from mmjax.parallel.mesh import make_mesh
    from mmjax.run import Run
    from mmjax.train.build import build_layout, build_source

    opened = Run(run)
    results = []
    for rows in (tiny().data.rows, {"speech": 400, "image": 64, "text": 16, "transcript": 20, "examples": 1}):
        config = c.from_dict(c.Experiment, c.to_dict(tiny()) | {"data": c.to_dict(tiny().data) | {"rows": rows}}, "")
        source = build_source(config.data, "test")
        layout = build_layout(config, source.tokenizer)
        evaluator = Evaluator(config.data, opened.model, layout, opened.facts, source, make_mesh())
        results.append(evaluator.evaluate(opened.params, ["speech+image"], 37)["speech+image"])
    packed, alone = results
    assert packed.keys() == alone.keys() and packed["examples"] == alone["examples"] == 37
    for name in packed:
        assert packed[name] == pytest.approx(alone[name], rel=1e-5), name


def test_checkpoints_lists_them_oldest_first(run, capsys):
    code, out, _ = mmjax(capsys, "checkpoints", run, "--json")
    found = json.loads(out)
    assert code == 0 and [one["step"] for one in found] == [2, 4, 6]
    assert all(set(one) == {"step", "digest", "intact", "bytes", "problem", "best"} for one in found)


def test_checkpoints_says_when_the_first_one_comes(capsys, tmp_path):
    for steps, first in ((6, 2), (1, 1)):
        (tmp_path / "config.json").write_text(c.to_json(tiny(steps=steps)))
        said = f"{tmp_path} has no checkpoint yet; the first is saved after step {first} (checkpoint.every_steps)"
        assert mmjax(capsys, "checkpoints", tmp_path) == (0, f"{said}\n", "")
    assert mmjax(capsys, "checkpoints", tmp_path, "--json")[1] == "[]\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    here = tmp_path_factory.mktemp("files")
    tone = 0.3 * np.sin(np.arange(44_100 * 2) / 20)
    soundfile.write(here / "speech.ogg", np.stack([tone, tone], 1), 44_100)
    soundfile.write(here / "speech.wav", tone, 8_000)
    soundfile.write(here / "silent.wav", np.zeros(0), 16_000)
    soundfile.write(here / "short.wav", np.zeros(100), 16_000)
    soundfile.write(here / "huge.wav", 1e20 * tone, 16_000, subtype="FLOAT")
    soundfile.write(here / "tone.voc", tone, 16_000)
    soundfile.write(here / "long.flac", np.zeros(16_000 * 301), 16_000)
    (here / "cut.wav").write_bytes((here / "speech.wav").read_bytes()[:20_000])
    (here / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("RGB", (1, 1)).save(here / "tiny.png")
    Image.effect_noise((400, 300), 30).save(here / "photo.jpeg")
    return here


@pytest.mark.parametrize(
    "given",
    [
        ["--speech", "speech.ogg"],
        ["--image", "tiny.png"],
        ["--text", "is there a circle?"],
        ["--speech", "speech.wav", "--image", "photo.jpeg", "--text", "is it red?"],
        *(
            pytest.param(pair, marks=pytest.mark.slow)
            for pair in (
                ["--speech", "speech.wav", "--image", "photo.jpeg"],
                ["--speech", "speech.ogg", "--text", "what shape is it?"],
                ["--image", "photo.jpeg", "--text", "Zebra 42?"],
            )
        ),
    ],
    ids=lambda given: "+".join(g[2:] for g in given if g.startswith("--")),
)
def test_predict_from_any_subset(run, files, capsys, monkeypatch, given):
    monkeypatch.chdir(files)
    code, out, _ = mmjax(capsys, "predict", run, *given, "--json")
    result = json.loads(out)
    assert code == 0 and len(result["answer/probabilities"]) == 13
    assert sum(result["answer/probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert result["answer"] == max(result["answer/probabilities"], key=result["answer/probabilities"].get)
    assert ("transcript" in result) == ("--speech" in given)


def test_predict_an_example_of_the_data(run, capsys):
    code, out, _ = mmjax(capsys, "predict", run, "--example", "3", "--json")
    result = json.loads(out)
    assert code == 0 and result["example"]["modalities"] == "speech+image" and "transcript" in result
    assert result["example"]["answer"] in result["answer/probabilities"]


def test_eval_needs_the_tokenizer_that_the_run_was_trained_with(run, tmp_path, capsys):
    kept = shutil.copytree(run, tmp_path / "run") / "tokenizer.model"
    kept.write_bytes(kept.read_bytes()[:300])
    code, _, err = mmjax(capsys, "eval", kept.parent, "--examples", 8)
    assert code == 2 and f"cannot read the tokenizer {kept}: it is damaged" in err


def test_predict_for_people(run, files, capsys):
    code, out, _ = mmjax(capsys, "predict", run, "--image", files / "photo.jpeg", "--speech", files / "speech.ogg")
    assert code == 0 and "answer: " in out and "%" in out and "transcript: " in out


def test_a_model_of_another_library_is_to_be_imported_first(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    out = ["-o", str(tmp_path / "out")]
    for command in ("chat", "eval", "predict", "checkpoints", "goodput", ["export", *out], ["report", *out]):
        name, *more = [command] if isinstance(command, str) else command
        assert cli.main([name, str(tmp_path), *more]) == 2
        assert f"import it first, and give NAME instead: mmjax import {tmp_path} -o NAME" in capsys.readouterr().err


def test_a_command_that_there_is_not_is_answered_with_the_one_that_does_it(capsys):
    for word, answer in (("transcribe", "see mmjax predict --help"), ("trian", "did you mean 'train'?")):
        with pytest.raises(SystemExit):
            cli.main([word, "a.wav"])
        assert f"there is no command {word}; {answer}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "{run}"], "at least one of"),
        (["predict", "{run}", "--speech", "{files}/missing.wav"], "missing.wav"),
        (["predict", "{run}", "--speech", "{files}/cut.wav"], "truncated"),
        (["predict", "{run}", "--speech", "{files}/silent.wav"], "no samples"),
        (["predict", "{run}", "--speech", "{files}/short.wav"], "shorter than one analysis window"),
        (["predict", "{run}", "--image", "{files}/broken.png"], "cannot decode the image"),
        (["predict", "{run}", "--image", "{files}/speech.wav"], "cannot decode the image"),
        (["predict", "{run}", "--text", "is there a red shape " * 50], "row has room for 16; shorten it"),
        (["predict", "{run}", "--example", "300"], "no example 300: the test split has 300"),
        (["predict", "{run}", "--example", "3", "--text", "is it red?"], "either --example, or inputs"),
        (["predict", "{files}", "--text", "hello"], "not a run directory"),
        (["eval", "{files}"], "not a run directory"),
        (["eval", "{run}", "--split", "valid"], "has no split 'valid'"),
        (["checkpoints", "{files}"], "not a run directory"),
        (["train", "nothing.py"], "there is no config file nothing.py"),
        (["train", "{config}", "--run-dir", "{run}", "--seed", "5"], "run of another config"),
        (["train", "{config}", "--sede", "5"], "did you mean 'seed'?"),
        (["predict", "{run}", "--sppech", "a.wav"], "there is no option --sppech; did you mean --speech?"),
        (["predict", "{run}", "--txt=red?"], "there is no option --txt; did you mean --text?"),
        (["eval", "{run}", "--exampels", "5"], "there is no option --exampels; did you mean --examples?"),
        (["train", "{config}", "--seed", "five"], "seed must be a whole number, not 'five'"),
        (["train", "{config}", "--run-dir", "{files}/cut.wav/run"], "cannot write to the run directory"),
        (["train", "{config}", "--data.directory", "{files}/cut.wav/data"], "cannot prepare data"),
        (["train", "{config}", "--data.rows.image", "100"], "is no multiple of 64"),
        (["train", "{config}", "--data.subsets", "{'smell': 1.0}"], "names 'smell'"),
        (["train", "{config}", "--mesh.data", "3"], "mesh.data=3 is not the number of devices"),
        (["train", "{config}", "--model.tasks.answer.outputs", "5"], "outputs=5, but the label 'answer' has 13"),
        (["train", "{config}", "--model.tasks.transcript.outputs", "64"], "the tokenizer has 128 pieces"),
        (["train", "{config}", "--model.encoders.speech.front-end.sample-rate", "8000"], "speech at 16000 Hz"),
        (["predict", "{run}", "--speech", "{files}/huge.wav"], "holds values up to"),
        (["predict", "{run}", "--speech", "{files}/tone.voc"], "its format is VOC"),
        (["predict", "{run}", "--speech", "{files}/long.flac", "--text", "is it red?"], "longer than 300 seconds"),
        (["predict", "{run}", "--text", "\udcff"], "not valid Unicode"),
    ],
)
def test_bad_input_is_one_clear_line(run, files, capsys, tmp_path, arguments, message):
    config = tmp_path / "tiny.json"
    config.write_text(c.to_json(tiny()))
    places = {"{run}": str(run), "{files}": str(files), "{config}": str(config)}

    def filled(argument):
        for name, value in places.items():
            argument = argument.replace(name, value)
        return argument

    if arguments[0] == "train" and "--run-dir" not in arguments:
        arguments = [*arguments, "--run-dir", str(tmp_path / "run")]
    code, out, err = mmjax(capsys, *map(filled, arguments))
    assert code != 0 and out == ""
    assert message in err and "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_config_prints_json(capsys, tmp_path):
    code, out, _ = mmjax(capsys, "config", "configs/quickstart.py", "--steps", 3)
    assert code == 0 and json.loads(out)["steps"] == 3


def test_help_needs_no_heavy_library():
    code = (
        "import sys, mmjax.cli\ntry: mmjax.cli.main(['--help'])\nexcept SystemExit: pass\nprint('jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False")


def test_data_workers_load_neither_jax_nor_tensorflow(run):
    code = (
        "import sys\nfrom mmjax.data.loader import Batches\nfrom mmjax.data.source import Opening\n"
        "from mmjax.data.spoken_easy_vqa import SpokenEasyVQA\nfrom mmjax.files import data_directory\n"
        f"source = SpokenEasyVQA(examples={EXAMPLES}).open('train', Opening(data_directory()))\n"
        "example = source[3]; example.input('speech')\n"
        "print(sorted({'jax', 'flax', 'tensorflow', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip().endswith("[]"), out.stderr


def test_keys_of_a_class_are_printed_with_their_units(capsys):
    assert cli.main(["keys", "Contrast"]) == 0
    assert "  between: tuple[str, ...]  (required)  # two encoders\n" in capsys.readouterr().out
    assert cli.main(["keys", "KaldiFilterBank"]) == 0
    assert "  window: int = 400  # samples\n" in capsys.readouterr().out  # the keys of its base class, too
    assert cli.main(["keys", "ViT"]) == 0
    assert "ViT.preset(NAME): A published size" in capsys.readouterr().out
    assert cli.main(["keys"]) == 0
    assert "\nspeech encoder: Conformer, BiLSTM, WhisperEncoder\n" in capsys.readouterr().out
    assert cli.main(["keys", "CTC"]) == 0
    assert " = ('cer', 'wer')" in capsys.readouterr().out, "the value of a constant, not its name"
    assert cli.main(["keys", "Contrat"]) == 2 and "did you mean 'Contrast'" in capsys.readouterr().err


def test_keys_of_a_users_file_are_printed(capsys):
    file = str(DOCS / "plug_in.py")
    assert cli.main(["keys", file]) == 0
    assert capsys.readouterr().out == "collection: Sums\ntext encoder: Smoothed\ntask: Ordinal\n"
    assert cli.main(["keys", f"{file}:Ordinal"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Ordinal: A task: classes in an order, by CORAL")
    assert "\n  outputs: int | None = None  # number of classes; None: as many as the data has\n" in said
    assert cli.main(["keys", f"{file}:Ordnal"]) == 2 and "did you mean 'Ordinal'" in capsys.readouterr().err
    assert cli.main(["keys", "absent.py"]) == 2 and "there is no file absent.py" in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback(monkeypatch):
    """As by `mmjax keys Data | head -1`, which reads no further."""
    reading, writing = os.pipe()
    os.close(reading)
    with monkeypatch.context() as changed:
        changed.setattr(sys, "stdout", os.fdopen(writing, "w"))
        assert cli.main(["keys", "Data"]) == 141
        sys.stdout.close()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))])
def test_the_commands_of_a_page_exist_with_their_options(page):
    """Other tests run them on files. Whatever is no option of the command must be a key of the config."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (DOCS.parent / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    text = (
        "\n".join(block for language, block in blocks if language in ("", "bash"))
        .replace("\\\n", " ")
        .replace("&& ", "\n")
    )
    lines = re.findall(r"^(?:\.venv/bin/)?mmjax (.*)", text, re.MULTILINE)
    for line in lines:
        words = [word for word in shlex.split(line, comments=True) if not word.startswith("$")]
        parser, _ = cli._parser()
        options, rest = parser.parse_known_args([word for word in words if word != "..."])
        flags = [word for word in rest if word.startswith("--")]
        assert options.overrides or not rest, f"{line}: {rest}"
        keys = {field.name for field in dataclasses.fields(c.Experiment)}
        assert all(flag[2:].split(".")[0].replace("-", "_") in keys for flag in flags), f"{line}: {flags}"
