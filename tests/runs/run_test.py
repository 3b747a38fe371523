"""One way to open a run: what each command sees of it."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import export, generate
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.weights import base as base_lib
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_and_policy(tmp_path_factory):
  """A training of another seed than the commands' own."""
  config = tiny.tiny_config(tmp_path_factory.mktemp("run") / "run")
  config.seed = 3
  config.train.epochs = 1
  run_folder.begin_or_continue(config)
  parts = tiny.tiny_parts(config)
  base_lib.write_base(config.folder / "base", parts[0])
  policy = tiny.train(config, parts)
  return config.folder, policy


def test_a_run_of_any_seed_is_answered_and_exported(
  run_and_policy, tmp_path, capsys
):
  folder, _ = run_and_policy
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  with flagsaver.flagsaver(workdir=str(folder), user=["2"], prompt=["why?"]):
    generate.main()
  assert capsys.readouterr().out.startswith("2: ")
  export.export_run(folder, tmp_path / "out")
  described = json.loads(
    (tmp_path / "out" / "users" / "users.json").read_text()
  )
  assert described["users"] == [None, "1", "2", "3"]
  with pytest.raises(ValueError, match="has something in it already"):
    export.export_run(folder, tmp_path / "out")
  with pytest.raises(ValueError, match="'ann' is none of this run's 3 users"):
    export.export_run(folder, tmp_path / "new", people=("2", "ann"))
  export.export_run(folder, tmp_path / "new", "tokens", ("2",))
  described = json.loads((tmp_path / "new" / "users.json").read_text())
  assert described["users"] == [None, "2"]


def test_the_policy_of_a_run_is_the_one_that_was_trained(run_and_policy):
  folder, policy = run_and_policy
  trained = run_lib.Run.open(folder).own
  rows = jnp.arange(4)
  np.testing.assert_array_equal(
    trained.policy.user_model(rows), policy.merge().user_model(rows)
  )
  assert trained.step == 3


def test_users_and_config_are_known_without_a_weight(
  run_and_policy, monkeypatch
):
  folder, _ = run_and_policy

  def refuse(*arguments, **others):
    raise AssertionError("the base was read")

  monkeypatch.setattr(run_lib, "read_base", refuse)
  run = run_lib.Run.open(folder)
  assert run.config.seed == 3
  assert run.own.users.ids == ("1", "2", "3")
  assert [*run.trainings] == ["pdpo"]
  assert run.dataset.train
  with pytest.raises(AssertionError, match="the base was read"):
    _ = run.own.policy


def test_another_base_is_refused_before_anything_is_made_of_it(run_and_policy):
  folder, _ = run_and_policy
  run = run_lib.Run.open(folder)
  other = dataclasses.replace(run.base, fingerprint="0" * 16)
  with pytest.raises(ValueError, match="was trained on base"):
    run_lib.Run.open(folder, base=other).own.check()
