import os
import pathlib
import runpy
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import __main__ as commands
from pdpo_jax import command_line, export, generate, users
from pdpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pdpo_jax"


def run(*arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "pdpo_jax", *arguments],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("command", commands.COMMANDS)
def test_each_command_has_a_line_of_help(command):
  line = commands.summary(command)
  assert line.endswith(".") and len(line) <= 66
  assert (
    f"python -m pdpo_jax.{command}" in (PACKAGE / f"{command}.py").read_text()
  )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
@pytest.mark.parametrize(
  ("called", "program"),
  [
    ("/env/bin/pdpo", "pdpo"),
    ("pdpo_jax/__main__.py", "python -m pdpo_jax"),
  ],
)
def test_without_a_command_all_are_listed(called, program, words, capsys):
  commands.main([called, *words])
  printed = capsys.readouterr().out
  assert printed.startswith(f"usage: {program} COMMAND")
  for command in commands.COMMANDS:
    assert f"\n  {command} " in printed
    assert commands.summary(command) in printed


@pytest.mark.parametrize("word", ["trian", "Main", "core", "--config=prism"])
def test_an_unknown_command_is_an_error_that_lists_those_there_are(word):
  with pytest.raises(SystemExit) as stopped:
    commands.main(["pdpo", word])
  assert stopped.value.code == (
    f"error: {word!r} is not a command; those are main, generate, serve, "
    "evaluate, users, export, preview, plan, convert"
  )


def test_a_command_runs_as_its_module_with_its_own_arguments(monkeypatch):
  ran = []
  monkeypatch.setattr(
    runpy,
    "run_module",
    lambda module, **options: ran.append((module, options, [*sys.argv])),
  )
  monkeypatch.setattr(sys, "argv", ["pdpo", "main", "--config=a.py", "--x"])
  commands.main()
  options = {"run_name": "__main__", "alter_sys": True}
  arguments = ["pdpo", "--config=a.py", "--x"]
  assert ran == [("pdpo_jax.main", options, arguments)]


def test_a_command_finds_shipped_configs_from_any_folder(tmp_path):
  done = run("main", "--config=prism:cluster50", folder=tmp_path)
  assert done.returncode == 1
  assert (
    done.stderr.strip()
    .splitlines()[-1]
    .startswith(
      "error: configs/prism.py has no variant 'cluster50'; it has 'individual'"
    )
  )


def test_a_command_runs_where_there_is_no_clone(tmp_path):
  done = run(
    "preview",
    "--config=quickstart:smoke",
    "--personal_signal",
    folder=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  written = tmp_path / "runs" / "quickstart-smoke" / "data_report.txt"
  assert "how much is personal" in written.read_text()


def test_help_has_the_flags_that_commands_share(tmp_path):
  done = run("export", "--help", folder=tmp_path)
  assert "--workdir" in done.stdout and "--output" in done.stdout
  assert "traceback" in done.stdout and "--coordinator" not in done.stdout


def test_shipped_configs_are_the_files_of_the_folder():
  files = sorted((ROOT / "configs").glob("*.py"))
  assert [*command_line.shipped_configs().values()] == files


def test_the_config_of_a_run_is_one(tmp_path):
  config = config_lib.Config(name="x", workdir=str(tmp_path), seed=7)
  (tmp_path / "config.json").write_text(config.to_json())
  file = command_line.config_file(str(tmp_path / "config.json"))
  place, _, folder = file.partition(":")
  assert runpy.run_path(place)["get_config"](folder) == config
  (tmp_path / "config.json").unlink()
  with pytest.raises(ValueError, match="there is no file"):
    command_line.config_file(str(tmp_path / "config.json"))


@pytest.mark.parametrize("variant", ["", ":", ":authors"])
def test_a_bare_name_is_a_shipped_config(variant):
  file = ROOT / "configs" / "prism.py"
  assert command_line.config_file(f"prism{variant}") == f"{file}{variant}"


def test_a_path_stays_as_it_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("prism.py").touch()
  for path in ("prism.py", "./prism.py:a:b", f"{tmp_path}/prism.py:authors"):
    assert command_line.config_file(path) == path


def test_a_bare_name_that_is_not_shipped_is_an_error_with_those_that_are():
  with pytest.raises(
    ValueError,
    match=r"--config 'prisn' is none of the shipped configs, "
    r"community_alignment, jester, movielens, preferences, prism, quickstart, "
    r"smollm2, tldr; name one of them, or a file that ends",
  ):
    command_line.config_file("prisn:authors")
  with pytest.raises(ValueError, match="--config '' is none of the shipped"):
    command_line.config_file("")


def test_a_file_that_is_not_there_is_an_error_with_the_name_that_is_meant(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ValueError,
    match=r"there is no file configs/prism.py; the shipped config is "
    r"--config=prism:authors$",
  ):
    command_line.config_file("configs/prism.py:authors")
  with pytest.raises(ValueError, match=r"there is no file my/own\.py$"):
    command_line.config_file("my/own.py")


def test_all_ways_to_write_the_flag_are_read():
  file = str(ROOT / "configs" / "prism.py")
  for given, meant in (
    (["--config=prism"], [f"--config={file}"]),
    (["-config=prism:x"], [f"-config={file}:x"]),
    (["--config", "prism"], ["--config", file]),
    (["--config.name=prism", "prism"], ["--config.name=prism", "prism"]),
    (["--config"], ["--config"]),
  ):
    assert command_line._with_config_files(given) == meant


@pytest.mark.parametrize("flag", ["workdir", "data", "to", "output"])
def test_a_flag_without_a_value_is_not_one_that_is_not_there(flag):
  assert {users._DATA.name, export._OUTPUT.name} <= {*flags.FLAGS}
  with (
    flagsaver.flagsaver(),
    pytest.raises(SystemExit, match=f"--{flag} is em"),
  ):
    command_line._parse(["users", f"--{flag}="])


def test_what_may_say_nothing_may_be_empty():
  assert generate._USER_TEXT.default is None
  with flagsaver.flagsaver():
    words = ["users", "--database=", "--user_text=", "list"]
    assert command_line._parse(words) == ["users", "list"]


def test_an_empty_prompt_is_an_error():
  with (
    flagsaver.flagsaver(prompt=["a", " "]),
    pytest.raises(ValueError, match="--prompt is empty"),
  ):
    command_line.read_prompts()
