"""The notebooks run from top to bottom, on fewer questions, fewer steps and smaller models; and they install mmjax."""

import dataclasses
import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
import soundfile
from conftest import EXAMPLES
from debs import deb
from test_openclipart import bars, svg
from test_remote import bucket_of_s3
from untrained import WORDS, untrained

import mmjax
from mmjax import config as c
from mmjax.data.openclipart import DRAWINGS
from mmjax.train.checkpoint import describe_run

REDUCED = f"""overrides = "--steps 3 --data.source.examples {EXAMPLES} --model.unroll false --log.every-steps 1 " \\
    "--model.encoders.speech.layers 1 --model.encoders.image.layers 1 --model.encoders.text.layers 1 " \\
    "--model.fusion.layers 1 --checkpoint.every-steps none".split()"""


NOTEBOOKS = sorted(pathlib.Path("colab").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_installs_mmjax_like_the_others(path):
    notebook, quickstart = (nbformat.read(one, as_version=4) for one in (path, "colab/quickstart.ipynb"))
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].source == quickstart.cells[1].source
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in cells) == 1
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    stored = json.dumps(json.loads(path.read_text("utf-8")), indent=1, ensure_ascii=False) + "\n"
    assert path.read_text("utf-8") == stored
    linked = [name for cell in notebook.cells for name in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source)]
    assert all((path.parent / name).is_file() for name in linked), linked


def executed(name, monkeypatch, changes):
    """A notebook after it has run, with other texts in its cell of parameters."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    notebook = nbformat.read(f"colab/{name}.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    for old, new in changes.items():
        assert old in parameters.source
        parameters.source = parameters.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": "colab"}}).execute()
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook):
    """What the cells print; then what they print as rich text."""
    rich = (one["data"] for one in outputs(notebook) if "image/png" not in one.get("data", ("image/png",)))
    texts = [one.get("text", "") for one in outputs(notebook)] + [data.get("text/plain", "") for data in rich]
    return re.sub("\x1b\\[[0-9;]*m", "", "".join(texts))


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_bring_your_own_data(tmp_path, monkeypatch):
    reduced = 'overrides = "--steps 3 --log.every-steps 1 --model.encoders.image.layers 1".split()'
    changes = {'Path("own_data")': f"Path({str(tmp_path)!r})", "most = 2000": "most = 100", "overrides = []": reduced}
    notebook = executed("bring_your_own_data", monkeypatch, changes)
    said = printed(notebook)
    assert "left out: {'unreadable': 1}" in said, "the file that is cut short"
    assert "shape: " in said and "colour: " in said and pictures(notebook) == 2
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in outputs(notebook))
    assert "rows without covered of at least 0.02" in shown and "'covered'" not in shown
    assert any("srcdoc" in output.get("data", {}).get("text/html", "") for output in outputs(notebook)), "the page"
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_retrieval_and_search(tmp_path, monkeypatch):
    pytest.importorskip("resvg_py")
    chance = np.random.default_rng(0)
    names = [f"{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(60)]
    files = {f"{DRAWINGS}/bars/{one}.svg": svg(f"Bars of {one}", bars(chance.integers(5, 90, 12))) for one in names}
    package = deb(tmp_path / "clip.deb", {name: text.encode() for name, text in files.items()})
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    reduced = f"""overrides = "--steps 2 --log.every-steps 1 --data.source.package {package} --data.tokenizer.vocabulary 48 " \\
    "--model.unroll false --model.encoders.image.layers 1 --model.encoders.text.layers 1 " \\
    "--evaluation.every-steps none --checkpoint.every-steps none".split()"""
    changes = {'Path("retrieval")': f"Path({str(tmp_path / 'work')!r})", "overrides = []": reduced}
    notebook = executed("retrieval_and_search", monkeypatch, changes)
    assert pictures(notebook) == 1 + 3 + 2 + 2, "the data, three texts, and two pictures with what is found"
    query, own = "".join(one.get("text", "") for one in outputs(notebook)).split("titles:\n")[1:]
    assert all(title.startswith("  Bars of ") for title in query.splitlines() + own.splitlines())
    assert len(query.splitlines()) == len(own.splitlines()) == len(set(query.splitlines()))
    found = mmjax.open_index(tmp_path / "work" / "index").search(image=tmp_path / "work" / "drawings" / "0002.png")
    assert found[0].score == pytest.approx(1.0, abs=1e-4) and found[0].content.endswith("0002.png")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_visual_question_answering(tmp_path, monkeypatch):
    reduced = f"""overrides = "--steps 2 --data.source.examples {EXAMPLES} --model.unroll false --log.every-steps 1 " \\
    "--evaluation.final-examples 16 --data.batch-rows 2 --model.encoders.speech.layers 1 --model.encoders.image.layers 1 " \\
    "--model.encoders.text.layers 1 --model.tasks.answer.decoder.layers 1 --checkpoint.every-steps none".split()"""
    changes = {"overrides = []": reduced, 'Path("runs/visual_question_answering")': f"Path({str(tmp_path / 'run')!r})"}
    notebook = executed("visual_question_answering", monkeypatch, changes)
    said = printed(notebook)
    blind = float(re.search(r"the question alone: ([\d.]+)%", said)[1])
    assert float(re.search(r"always 'yes': ([\d.]+)%", said)[1]) < blind < 100
    assert said.count("?  ->  ") == 3 and pictures(notebook) == 2
    html = "".join(output.get("data", {}).get("text/html", "") for output in outputs(notebook))
    assert "Attention of answer" in html and "attention of answer over image" in html and html.count("<audio") >= 2


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_pod_training(tmp_path, monkeypatch):
    """With real processes, of which one is killed, and a run in a bucket of S3."""
    short = f"--data.source.examples {EXAMPLES} --steps 40 --checkpoint.every-steps 5"
    with bucket_of_s3(monkeypatch):
        changes = {
            "pretrain_1b": "quickstart",
            "--data.source.examples 500 --steps 60 --checkpoint.every-steps 5": short,
            'Path("runs/rehearsal")': f"Path({str(tmp_path / 'rehearsal')!r})",
            "bucket = None": 'bucket = "s3://bucket/runs/rehearsal"',
            '"h100:8x4": 2.5, "v5p:4x4x4": 4.0': '"v5p:2x2x1": 4.0',
        }
        notebook = executed("pod_training", monkeypatch, changes)
    said = printed(notebook)
    assert "exit code 0" in said and "a process was lost; going on with 1" in said and "step 40/40" in said
    assert re.search(r"goodput \d+\.\d %", said) and "h100:8 " in said and "v5p:2x2x1" in said
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs(notebook)), "the picture of a plan"
    assert [one["step"] for one in describe_run(tmp_path / "rehearsal")][-1] == 40


@pytest.fixture
def imported(tmp_path):
    """A tiny model with the parts of Whisper and random parameters, as an import."""
    encoder = c.WhisperEncoder(layers=1, width=16, heads=2, mlp=32, pad_to_length=True)
    decoder = c.TextDecoder(vocabulary=60, layers=2, width=16, heads=2, mlp=32)
    directory = tmp_path / "work" / "imported"
    untrained(directory, encoder, {"transcript": c.Write(reads=("speech",), decoder=decoder)}, hops=3000)
    config = c.load(directory / "config.json")
    tokenizer = c.SentencePiece(file=str(directory / "tokenizer.model"))
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))
    (directory / "config.json").write_text(c.to_json(changed))
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_speech_recognition(tmp_path, monkeypatch, imported):
    """Its cells with a model of Whisper's form; tests/test_pretrained_models.py has Whisper itself."""
    chance = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        rows = ["speech\ttranscript"]
        for number in range(count):
            soundfile.write(
                tmp_path / f"{split}{number}.wav", 0.1 * chance.standard_normal(16_000 + 800 * number), 16_000
            )
            rows.append(f"{split}{number}.wav\tone two {WORDS[0].split()[number]}")
        (tmp_path / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    changes = {
        'Path("speech_recognition")': f"Path({str(imported.parent)!r})",
        "recordings = None": f"recordings = Path({str(tmp_path)!r})",
        "overrides = []": 'overrides = "--steps 2 --log.every-steps 1 --checkpoint.every-steps none".split()',
    }
    notebook = executed("speech_recognition", monkeypatch, changes)
    said = printed(notebook)
    assert said.count("word error rate as they are") == 2 and "right:   one two one" in said
    assert "before: " in said and "after: " in said and pictures(notebook) == 1, "the words in time"
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in outputs(notebook)) == 3
    assert (imported.parent / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart(tmp_path, monkeypatch):
    notebook = executed("quickstart", monkeypatch, {"overrides = []": REDUCED, "runs/notebook": str(tmp_path / "run")})
    assert pictures(notebook) >= 5, "pictures, rows and curves"
    html = [output.get("data", {}).get("text/html", "") for output in outputs(notebook)]
    assert any("audio" in text for text in html), "a sound"
    assert "answer:" in printed(notebook)
    assert pathlib.Path(tmp_path / "run" / "checkpoints" / "3").is_dir()


SHORT = f"""overrides = "--steps 2 --log.every-steps 1 --data.batch-rows 1 --evaluation.final-examples 2 " \\
    "--data.source.sources.questions.source.examples {EXAMPLES} --data.rows.speech 1024 " \\
    "--checkpoint.every-steps none".split()"""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_chat(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        pytest.skip("the recordings are in packages of Debian")
    changes = {"overrides = []": SHORT, 'Path("chat")': f"Path({str(tmp_path)!r})"}
    notebook = executed("chat", monkeypatch, changes)
    shown = outputs(notebook)
    assert "Paris" in "".join(o.get("text", "") for o in notebook.cells[5].outputs)
    assert pictures(notebook), "the picture"
    assert any("audio" in o.get("data", {}).get("text/html", "") for o in shown), "the recording"
    assert "> What is said?" in printed(notebook)
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize(
    "there, found, wanted, extras, keeps",
    [
        ({}, None, "cpu", [], False),
        ({"jax": "0.10.1", "jaxlib": "0.10.1"}, "cpu", "cpu", [], True),
        ({"jax": "0.9.2", "jaxlib": "0.9.2"}, "cpu", "cpu", [], False),
        ({"jax": "0.10.1", "jaxlib": "0.10.1", "jax-cuda12-plugin": "0.10.1"}, "gpu", "gpu", [], True),
        ({"jax": "0.9.2", "jaxlib": "0.9.2", "jax-cuda12-plugin": "0.9.2"}, "gpu", "gpu", ["cuda12"], False),
        ({"jax": "0.9.2", "jaxlib": "0.9.2", "jax-cuda13-plugin": "0.9.2"}, "gpu", "gpu", ["cuda13"], False),
        ({"jax": "0.10.1", "jaxlib": "0.10.1"}, "cpu", "gpu", ["cuda12"], False),  # it does not see the GPU
        ({"jax": "0.10.1", "jaxlib": "0.10.1", "libtpu": "0.0.30"}, "tpu", "tpu", [], True),
        ({"jax": "0.10.1", "jaxlib": "0.10.1", "libtpu": "0.0.30"}, "cpu", "cpu", [], True),
        ({}, None, "tpu", ["tpu"], False),
    ],
)
def test_a_jax_that_works_is_kept_and_another_comes_with_its_plugin(there, found, wanted, extras, keeps):
    choose = runpy.run_path("colab/install.py")["choose"]
    assert choose(there, found, wanted) == (["quickstart", "drawings", "huggingface", *extras], there if keeps else {})


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_cell_installs_into_a_kernel_that_runs(tmp_path, monkeypatch):
    """In a folder that will hold the checkout by the package's name, with an older JAX installed, as on Colab."""
    home, content, here = tmp_path / "venv", tmp_path / "content", pathlib.Path.cwd()
    content.mkdir()
    listed = pathlib.Path(".ci/constraints.txt").read_text().splitlines(keepends=True)
    pins = [line for line in listed if not line.startswith(("jax==", "jaxlib=="))]
    (tmp_path / "constraints.txt").write_text("".join(pins))
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    subprocess.run([home / "bin/python", "-m", "pip", "install", "-q", "jax==0.10.0", "ipykernel"], check=True)
    # The notebook clones from where the project is published; here that is this checkout, as it is committed.
    for name, value in {
        "COUNT": "1",
        "KEY_0": f"url.{here}.insteadOf",
        "VALUE_0": "https://github.com/mmjax/mmjax",
    }.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    spec = tmp_path / "jupyter" / "kernels" / "clean" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [str(home / "bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "clean", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    notebook = nbformat.read("colab/quickstart.ipynb", as_version=4)
    install, load = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    colab = nbformat.v4.new_code_cell(
        "import sys, types\ncolab = sys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        "colab.output = None  # which JAX imports there"
    )
    code = "import jax, mmjax, mmjax.train.loop\nprint([jax.__version__, mmjax.__file__, config.name])"
    shows = nbformat.v4.new_code_cell(code)
    notebook.cells = [colab, install, load, shows]
    nbclient.NotebookClient(
        notebook, timeout=1000, kernel_name="clean", resources={"metadata": {"path": str(content)}}
    ).execute()
    version, place, name = eval(shows.outputs[-1]["text"])
    assert version == "0.10.0" and name == "quickstart"
    assert pathlib.Path(place).is_relative_to(home), "the package, not the checkout as a namespace"
    assert (content / "mmjax" / "mmjax").is_dir()
