"""A user table apart from the model, the second of two devices its "host".

  python -m tests.training.host_users_test FOLDER

checks what needs two devices, which a process has from its start or not at all.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.evaluation import user_space
from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import user_model
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import (
  checkpoint,
  host_users,
  policies,
  scoring,
  sparse_users,
)
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent


def rows_of(trainable):
  return next(
    variable.get_value()
    for variable in sparse_users.variables(trainable)
    if isinstance(variable, user_model.UserRowParam)
  )


def assert_same(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def answers(policy):
  prompt = np.array([3, 5, 7], np.int32)
  requests = [generate.Request(prompt, row, seed=1) for row in (0, 2, 3, 2)]
  return generate.generate(
    policy.merge(),
    requests,
    sampling.AnswersConfig(max_new_tokens=5),
    stop_tokens=[0],
    pad_id=0,
    batch_size=3,
  )


def check(folder: pathlib.Path) -> None:
  near, far = jax.devices()
  host_users.host = lambda: far
  config = tiny.tiny_config(folder / "near")
  config.train.sparse_users = True
  made = tiny.tiny_parts(config)
  _, users, _, heldout, _ = made
  expected = tiny.train(config, made)
  on_host = dataclasses.replace(config.train, users_on_host=True)
  config = dataclasses.replace(
    config, train=on_host, workdir=str(folder / "far")
  )
  config_lib.validate(config)
  found = tiny.train(config, made)
  assert rows_of(expected.trainable).devices() == {near}
  assert rows_of(found.trainable).devices() == {far}
  assert host_users.is_apart(found.trainable)
  assert_same(found.trainable, expected.trainable)
  # Read, answered and looked at as the other is.
  for policy in (
    found,
    policies.load(config.recipe, made[0], folder / "far" / "pdpo")[0],
  ):
    assert rows_of(policy.trainable).devices() == {far}
    assert_same(
      scoring.score_held_out(policy, heldout, 1024).log_ratios,
      scoring.score_held_out(expected, heldout, 1024).log_ratios,
    )
    # Of the last two users alone, whose rows are the first that are fetched.
    batch = next(iter(heldout.in_order()))
    rows = users.num_rows - 2 + np.arange(batch.user_row.size) % 2
    last = dataclasses.replace(batch, user_row=rows.astype(np.int32))
    assert_same(
      next(scoring.score_batches(policy, [last], 1024))[1],
      next(scoring.score_batches(expected, [last], 1024))[1],
    )
    assert_same(answers(policy), answers(expected))
    own, other = (
      user_space.read_vectors(each.merge().user_model, users, users.ids)
      for each in (policy, expected)
    )
    np.testing.assert_allclose(own.prefixes, other.prefixes, atol=1e-6)
  check_resumed(config, made, expected)


def check_resumed(config, made, expected):
  """From the checkpoint of an earlier step it ends the same."""
  folder = config.folder / "pdpo" / "checkpoints"
  with checkpoint.Checkpoints(folder) as saved:
    first, last = saved.steps
  assert first < last
  shutil.rmtree(folder / str(last))
  again = tiny.train(config, made)
  assert host_users.is_apart(again.trainable)
  assert_same(again.trainable, expected.trainable)


@pytest.mark.slow
def test_a_table_on_the_host_trains_as_one_on_the_device(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "tests.training.host_users_test", tmp_path],
    cwd=ROOT,
    env=os.environ
    | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=2 "
      "--xla_backend_optimization_level=0"
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def test_without_the_sparse_step_it_is_an_error():
  config = config_lib.Config()
  config.train.users_on_host = True
  with pytest.raises(ValueError, match=r"train\.users_on_host needs"):
    config_lib.validate(config)


def test_on_one_device_nothing_is_apart():
  table = user_model.UserRowParam(np.zeros((5, 2)))
  state = nnx.State({"table": jax.tree.map(jax.numpy.asarray, table)})
  assert not host_users.is_apart(state)
  assert host_users.narrow(state, np.array([3]))[0] is state


if __name__ == "__main__":
  check(pathlib.Path(sys.argv[1]))
