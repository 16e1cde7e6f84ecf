"""The notebook runs from top to bottom, on fewer questions, fewer steps and a smaller model."""

import os
import pathlib

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
