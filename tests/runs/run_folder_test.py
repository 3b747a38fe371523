import json
import re

import pytest

from pdpo_jax.core import kept, processes
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run_folder


def test_a_run_folder_says_what_was_run_and_on_what(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path / "run"), seed=5)
  folder = run_folder.begin_or_continue(config)
  assert run_folder.read_config(folder) == config
  versions = json.loads((folder / "versions.json").read_text())
  assert {"python", "jax", "flax", "devices"} <= set(versions)


def test_the_same_config_goes_on_and_another_is_an_error(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path / "run"))
  folder = run_folder.begin_or_continue(config)
  run_folder.begin_or_continue(config)
  config.loss.beta = 0.25
  # Nothing is there yet that was made with another value.
  run_folder.begin_or_continue(config)
  (folder / "pdpo").mkdir()
  config.loss.beta = 0.5
  with pytest.raises(
    ValueError, match=re.escape("loss.beta is 0.25 there and 0.5 here")
  ):
    run_folder.begin_or_continue(config)


def test_a_run_goes_on_with_another_cache_and_on_another_mesh(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path))
  run_folder.begin_or_continue(config)
  (tmp_path / "pdpo").mkdir()
  config.cache, config.mesh.fsdp = str(tmp_path / "cache"), 2
  run_folder.begin_or_continue(config)
  assert run_folder.read_config(tmp_path) == config


def test_a_run_from_before_a_field_was_there_goes_on(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path))
  run_folder.begin_or_continue(config)
  (tmp_path / "pdpo").mkdir()
  file = tmp_path / "config.json"
  described = json.loads(file.read_text())
  del described["loss"]["chosen_nll"]
  kept.write_json(file, described)
  run_folder.begin_or_continue(config)
  config.loss.chosen_nll = 0.5
  with pytest.raises(ValueError, match=r"chosen_nll is 0\.0 there and 0\.5"):
    run_folder.begin_or_continue(config)


def test_a_damaged_description_is_named(tmp_path):
  (tmp_path / "pdpo").mkdir()
  (tmp_path / "config.json").write_text('{"name": ')
  config = config_lib.Config(workdir=str(tmp_path))
  for opened in (
    lambda: run_folder.begin_or_continue(config),
    lambda: run_folder.read_config(tmp_path),
  ):
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
      opened()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
  (tmp_path / "file").write_text("")
  config = config_lib.Config(workdir=str(tmp_path / "file" / "run"))
  with pytest.raises(ValueError, match=r"cannot be written .*choose another"):
    run_folder.begin_or_continue(config)


def test_a_read_only_file_system_is_an_error():
  config = config_lib.Config(workdir="/proc/run")
  with pytest.raises(ValueError, match="cannot be written"):
    run_folder.begin_or_continue(config)


def test_a_folder_without_a_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="is no run folder"):
    run_folder.read_config(tmp_path)


@pytest.mark.parametrize(
  ("kind", "name"),
  [("none", "vanilla"), ("individual", "pdpo"), ("cluster", "pdpo")],
)
def test_a_training_without_users_is_vanilla(kind, name):
  config = config_lib.Config()
  config.user.kind = kind
  assert config.training_name == name


def test_a_folder_that_processes_do_not_share_is_an_error(
  tmp_path, monkeypatch
):
  # Process 1 of two does not see what the first one wrote on its own disk.
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "is_first", lambda: False)
  monkeypatch.setattr(run_folder, "_SHOWN_SECONDS", 0)
  monkeypatch.setattr(processes, "gather", lambda own: [True, own])
  token = iter([tmp_path, "of the first"])
  monkeypatch.setattr(processes, "from_first", lambda make: next(token))
  monkeypatch.setattr(processes, "agree", lambda what, values: None)
  config = config_lib.Config(workdir=str(tmp_path))
  with pytest.raises(ValueError, match="is another one on process 1; check"):
    run_folder.begin_or_continue(config)
  (tmp_path / ".processes").write_text("of the first")
  token = iter([tmp_path, "of the first"])
  assert run_folder.begin_or_continue(config) == tmp_path


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"name": ', "is damaged"),
    ("[1]", "must have fields, and is"),
    ("[" * 100_000, "describes no run|is damaged"),
    ('{"loss": 3}', "loss must have fields, and is 3"),
    ('{"seed": {}}', "seed {} must be of type int"),
    ('{"seed": [1]}', r"seed \(1,\) must be of type int"),
    ('{"seed": true}', "seed True must be of type int"),
    ('{"lora": {"targets": "all"}}', "lora.targets 'all' must be a tuple"),
    ('{"lora": {"targets": [[1]]}}', "must be a tuple of str"),
    ('{"train": {"batch_size": null}}', "train.batch_size None must be"),
    ('{"loss": {"beat": 1}}', "loss has no field 'beat'; did you mean 'beta'"),
    ('{"future": 1}', "the configuration has no field 'future'"),
    ('{"loss": {"beta": -1}}', "loss.beta -1"),
  ],
)
def test_a_config_that_is_none_is_an_error_with_file_and_field(
  tmp_path, text, message
):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(kept.Damaged, match=message) as error:
    run_folder.read_config(tmp_path)
  assert str(error.value).startswith(str(tmp_path / "config.json"))
  assert "put it back from a copy" in str(error.value)


def test_a_config_that_is_gone_does_not_let_another_run_go_on(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path))
  run_folder.begin_or_continue(config)
  (tmp_path / "pdpo").mkdir()
  (tmp_path / "config.json").unlink()
  config.loss.beta = 0.25
  with pytest.raises(kept.Damaged, match=r"config\.json is missing; put it"):
    run_folder.begin_or_continue(config)


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
  config = config_lib.Config(workdir=str(tmp_path))
  (tmp_path / "pdpo" / "scores").mkdir(parents=True)
  kept.write(tmp_path / "config.json", config.to_json())
  left = [
    tmp_path / f".config.json.1{kept.UNFINISHED}",
    tmp_path / "pdpo" / "scores" / f".heldout_2.jsonl.2{kept.UNFINISHED}",
  ]
  for file in left:
    file.write_text("half")
  run_folder.begin_or_continue(config)
  assert not any(file.exists() for file in left)


@pytest.mark.parametrize(
  "text", ["{}", "[]", "null", '{"trained": 1, "heldout": [], "users": []}']
)
def test_a_record_of_what_is_held_out_that_is_none_is_an_error(tmp_path, text):
  (tmp_path / run_folder.HELD_OUT).write_text(text)
  with pytest.raises(kept.Damaged, match=r"held_out\.json is damaged .*again"):
    run_folder.read_held_out(tmp_path)


def test_what_a_run_keeps_is_its_owners_alone(tmp_path):
  folder = tmp_path / "runs" / "run"
  run_folder.begin_or_continue(config_lib.Config(workdir=str(folder)))
  run_folder.write_user_texts(folder, {"a": "I am old."})
  paths = [folder.parent, folder, *folder.iterdir()]
  assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
