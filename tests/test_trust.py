"""A Python file that only a saved config names does not run, unless the user has run it with this content."""

import importlib.util
import json
import py_compile
from pathlib import Path

import pytest
from conftest import tiny

from mmjax import cli
from mmjax import config as c
from mmjax.errors import UserError
from mmjax.tree import trust

PLANTED = """
from pathlib import Path
from mmjax import config as c
Path("planted").touch()

@c.part
class Planted(c.Constant):
    pass
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A run directory whose config names a Python file."""
    monkeypatch.setenv("MMJAX_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(f"# {tmp_path}\n{PLANTED}")  # no other test has run it
    tree = json.loads(c.to_json(tiny()))
    tree["optimizer"]["schedule"] = {"class": f"{tmp_path}/code.py:Planted", "peak": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    return tmp_path


def test_a_file_that_only_a_run_names_does_not_run(planted, capsys):
    assert cli.main(["config", "config.json"]) == 2
    assert "code.py would be run" in capsys.readouterr().err and not (planted / "planted").exists()
    with pytest.raises(UserError, match="--trust-code"):
        c.load(planted / "config.json")
    assert not (planted / "planted").exists()


def test_it_runs_where_the_user_says_so_or_has_run_it(planted, capsys, monkeypatch):
    trust(planted / "code.py")
    (planted / "code.py").write_text((planted / "code.py").read_text() + "# changed")
    assert cli.main(["config", "config.json"]) == 2 and not (planted / "planted").exists()
    trust(planted / "code.py")
    assert cli.main(["config", "config.json"]) == 0 and (planted / "planted").exists()


def test_a_file_that_is_gone_is_looked_for_in_the_run_directory(planted, tmp_path):
    """So a run moves to another machine with the classes that it needs; its content must be trusted there as anywhere."""
    run = tmp_path / "run"
    run.mkdir()
    (planted / "config.json").rename(run / "config.json")
    code = (planted / "code.py").rename(tmp_path / "aside")
    with pytest.raises(
        UserError, match="no file .*code.py, which has the class Planted .* copy it beside the config.json"
    ):
        c.load(run / "config.json")
    code.rename(run / "code.py")
    with pytest.raises(UserError, match="run/code.py would be run"):
        c.load(run / "config.json")
    trust(run / "code.py")
    schedule = c.load(run / "config.json").optimizer.schedule
    assert type(schedule).__name__ == "Planted" and schedule.peak == 0.1


def test_the_flag_runs_it(planted, monkeypatch, capsys):
    monkeypatch.setenv("MMJAX_TRUST_CODE", "0")  # restored at the end, whatever the command sets
    assert cli.main(["config", "config.json", "--trust-code"]) == 0 and (planted / "planted").exists()


def test_what_a_config_of_the_user_names_is_trusted(planted, monkeypatch):
    (planted / "mine.py").write_text(
        "import dataclasses\nfrom mmjax import config as c\nfrom conftest import tiny\n"
        "import pathlib\nown = c.run_file(pathlib.Path('code.py'))\n"
        "base = tiny()\n"
        "config = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, schedule=own.Planted(peak=0.1)))\n"
    )
    c.load(planted / "mine.py")
    assert (planted / "data" / "trusted-code.txt").read_text().count("\n") == 2


def test_a_cached_program_is_not_run_in_place_of_its_file(planted, capsys):
    """A run directory may hold a .pyc of another source, which Python's loader would prefer."""
    trust(planted / "code.py")
    other = planted / "other.py"
    other.write_text("from pathlib import Path\nPath('cached').touch()\n" + PLANTED)
    cached = importlib.util.cache_from_source(str(planted / "code.py"))
    Path(cached).parent.mkdir()
    py_compile.compile(str(other), cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert cli.main(["config", "config.json"]) == 0 and not (planted / "cached").exists()


def test_a_config_of_the_user_that_reads_a_saved_one_trusts_nothing_more(planted, capsys):
    (planted / "mine.py").write_text("from mmjax import config as c\nconfig = c.load('config.json')\n")
    assert cli.main(["config", "mine.py"]) == 2 and not (planted / "planted").exists()
    assert "code.py would be run" in capsys.readouterr().err
