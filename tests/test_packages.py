"""Imports go downwards only: docs/structure.md."""

import ast
import pathlib

import mmjax

HOME = pathlib.Path(mmjax.__file__).parent
# A package imports those in later lines alone, also inside functions.
ORDER = (
    ("cli", "__main__"),
    ("config",),
    (
        "prepare",
        "check",
        "bottleneck",
        "plan",
        "generation",
        "transcription",
        "measuring",
        "run",
        "opened",
        "search",
        "timestamps",
        "ngram",
        "interchange",
        "sweep",
        "report",
    ),
    ("train",),
    ("evaluate", "flops"),
    ("tasks",),
    ("models", "losses", "decode", "data", "parallel"),
    ("telemetry", "charts", "results"),
    ("stream", "progress", "files", "html", "metric"),
    ("tree", "errors"),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
BESIDE = {
    ("__main__", "cli"),
    ("prepare", "run"),
    ("report", "run"),
    ("report", "measuring"),
    ("run", "opened"),
    ("run", "generation"),
    ("search", "run"),
    ("run", "timestamps"),
    ("run", "measuring"),
    ("run", "transcription"),
    ("parallel", "models"),
    ("decode", "models"),
    ("decode", "losses"),
    ("tree", "errors"),
    ("tree", "files"),
    ("files", "errors"),
}


def imports():
    """(importing package, imported package, place) of every import of mmjax in mmjax."""
    for file in sorted(HOME.rglob("*.py")):
        package = file.relative_to(HOME).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "mmjax":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmjax."):
                names = [node.module.split(".")[1]]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mmjax.")]
            else:
                continue
            for name in set(names) & LEVEL.keys() - {package}:
                yield package, name, f"{file.relative_to(HOME.parent)}:{node.lineno}"


def test_imports_go_downwards_only():
    assert {package for package, _, _ in imports()} <= LEVEL.keys() | {"__init__"}
    upwards = [
        f"{place}: {package} imports {name}"
        for package, name, place in imports()
        if LEVEL.get(package, 0) >= LEVEL[name] and (package, name) not in BESIDE
    ]
    assert not upwards, "\n".join(upwards)
    assert not {(b, a) for a, b in BESIDE} & BESIDE


def test_models_and_data_do_not_know_each_other_and_data_knows_no_jax():
    found = {(package, name) for package, name, _ in imports()}
    assert not {("models", "data"), ("data", "models"), ("data", "parallel"), ("models", "parallel")} & found
    for file in (HOME / "data").glob("*.py"):
        assert "import jax" not in file.read_text("utf-8"), file
