"""Sparse steps on the golden policies, beside dense ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import user_model
from pdpo_jax.training import optimizer, recipes, sparse_users, step
from tests import golden_cases

CASES = [("llama", "individual"), ("gptj", "cluster")]


@functools.cache
def parts(name, case):
  arrays = golden_cases.read(name)
  made = golden_cases.make_policy(arrays, name, case)
  return nnx.split(made, policy_lib.trainable, ...)


def adam():
  train = recipes.TrainConfig(learning_rate=1e-2, warmup_steps=0)
  return optimizer.make_optimizer(train, 10)


def run(name, case, batches, sparse, objective=None, **kwargs):
  """The states before and after each step."""
  graphdef, trainable, frozen = parts(name, case)
  transformation = adam()
  trainable = jax.tree.map(jnp.array, trainable)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32), trainable, transformation.init(trainable)
  )
  train_step = step.make_train_step(
    graphdef,
    objective or golden_cases.objective(),
    transformation,
    sparse_users=sparse,
    **kwargs,
  )
  seen = [jax.tree.map(np.array, state)]
  for batch in batches:
    state, metrics = train_step(state, frozen, batch)
    seen.append(jax.tree.map(np.array, state))
  return seen, metrics


def batch_of(name, case, user_rows):
  batch = golden_cases.batch(golden_cases.read(name), case)
  return dataclasses.replace(batch, user_row=jnp.array(user_rows, jnp.int32))


def tables(state):
  """Rows of users and of their Adam moments."""
  found = [
    leaf.get_value()
    for leaf in jax.tree.leaves(
      (state.trainable, state.opt_state),
      is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )
    if isinstance(leaf, user_model.UserRowParam)
  ]
  found = [each for each in found if isinstance(each, np.ndarray)]
  assert len(found) == 3  # the table and two moments
  return found


def assert_close(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    # Sums over rows in another order.
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rows_are_those_of_the_docstring():
  rows, places = sparse_users.batch_rows(jnp.array([7, 0, 7, 3]), 10)
  assert rows.tolist() == [0, 3, 7, 10, 10]
  assert places.tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_every_example_finds_its_row(seed):
  user_row = jax.random.randint(jax.random.key(seed), (17,), 0, 9)
  rows, places = sparse_users.batch_rows(user_row, 9)
  np.testing.assert_array_equal(rows[places], user_row)
  real = rows[rows < 9].tolist()
  assert len(real) == len(set(real)) and real[0] == 0


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_first_step_equals_the_dense_one(name, case):
  # Without momentum, dense steps leave absent users alone as well.
  batches = [batch_of(name, case, [3, 7, 3, 12, 0])]
  sparse, sparse_metrics = run(name, case, batches, True)
  dense, dense_metrics = run(name, case, batches, False)
  assert_close(sparse[-1], dense[-1])
  assert_close(sparse_metrics, dense_metrics)
  moved = np.abs(tables(sparse[1])[0] - tables(sparse[0])[0]).max(
    axis=tuple(range(1, tables(sparse[0])[0].ndim))
  )
  assert all(moved[[3, 7, 12]] > 1e-4)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_users_of_every_batch_fare_as_with_dense_steps(name, case):
  batches = [batch_of(name, case, rows) for rows in ([3, 7, 3, 12, 7],) * 4]
  sparse, _ = run(name, case, batches, True)
  dense, _ = run(name, case, batches, False)
  assert_close(sparse[-1], dense[-1])


@pytest.mark.parametrize(("name", "case"), CASES)
def test_absent_users_stay_where_sparse_and_move_where_dense(name, case):
  batches = [
    batch_of(name, case, [3, 3, 7, 7, 7]),
    batch_of(name, case, [12, 12, 12, 12, 7]),
  ]
  for sparse, stays in ((True, True), (False, False)):
    (_, before, after), _ = run(name, case, batches, sparse)
    for old, new in zip(tables(before), tables(after), strict=True):
      assert (old[3] == new[3]).all() == stays
      assert not (old[7] == new[7]).all()
      assert not (old[12] == new[12]).all()


def test_parts_and_mixing_by_batch_do_not_change_that():
  name, case = CASES[0]
  objective = dataclasses.replace(golden_cases.objective(), mixing="batch")
  batches = [batch_of(name, case, [3, 0, 12, 0, 0])]
  results = [
    run(name, case, batches, sparse, objective, accumulation_steps=5)[0]
    for sparse in (True, False)
  ]
  assert_close(results[0][-1], results[1][-1])


def test_a_step_needs_no_memory_for_users_it_does_not_have():
  """Temporaries of the compiled step, beside a table of a hundred thousand."""
  name, case = CASES[0]
  graphdef, trainable, frozen = parts(name, case)
  transformation = adam()
  long = jax.tree.map(
    lambda leaf: (
      leaf.replace(jnp.zeros((100_000, *leaf.get_value().shape[1:])))
      if isinstance(leaf, user_model.UserRowParam)
      else leaf
    ),
    trainable,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
  state = jax.eval_shape(
    lambda long: structs.TrainState(
      jnp.zeros((), jnp.int32), long, transformation.init(long)
    ),
    long,
  )
  sizes = {}
  for sparse in (True, False):
    compiled = (
      step.make_train_step(
        graphdef,
        golden_cases.objective(),
        transformation,
        sparse_users=sparse,
      )
      .lower(state, frozen, batch_of(name, case, [3, 7, 3, 12, 0]))
      .compile()
    )
    sizes[sparse] = compiled.memory_analysis().temp_size_in_bytes
  table = 4 * tables_size(long)
  assert sizes[True] < table / 10
  assert sizes[False] > table / 2


def tables_size(trainable):
  return max(leaf.size for leaf in jax.tree.leaves(trainable))
