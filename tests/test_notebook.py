"""The notebooks run from top to bottom, on fewer questions, fewer steps and smaller models; and they install mmjax."""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import nbclient
import nbformat
import pytest
from conftest import EXAMPLES

REDUCED = f"""overrides = "--steps 3 --data.source.examples {EXAMPLES} --model.unroll false --log.every-steps 1 " \\
    "--model.encoders.speech.layers 1 --model.encoders.image.layers 1 --model.encoders.text.layers 1 " \\
    "--model.fusion.layers 1 --checkpoint.every-steps none".split()"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    notebook = nbformat.read("colab/quickstart.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "overrides = []" in parameters.source
    parameters.source = parameters.source.replace("overrides = []", REDUCED).replace(
        "runs/notebook", str(tmp_path / "run")
    )
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": "colab"}}).execute()
    shown = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert sum("image/png" in o.get("data", {}) for o in shown) >= 5, "pictures, rows and curves"
    assert any("text/html" in o.get("data", {}) and "audio" in o["data"]["text/html"] for o in shown), "a sound"
    assert any("answer:" in o.get("text", "") for o in shown)
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
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    notebook = nbformat.read("colab/chat.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    source = parameters.source.replace("overrides = []", SHORT).replace('Path("chat")', f"Path({str(tmp_path)!r})")
    assert SHORT in source and str(tmp_path) in source
    parameters.source = source
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": "colab"}}).execute()
    shown = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert "Paris" in "".join(o.get("text", "") for o in notebook.cells[5].outputs)
    assert any("image/png" in o.get("data", {}) for o in shown), "the picture"
    assert any("audio" in o.get("data", {}).get("text/html", "") for o in shown), "the recording"
    assert any("> What is said?" in o.get("text", "") for o in shown)
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
    assert choose(there, found, wanted) == (["quickstart", "huggingface", *extras], there if keeps else {})


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
