import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import sections
from pdpo_jax.models import user_model

V, D, T, U, C = 31, 7, 3, 5, 2
TABLE = jax.random.normal(jax.random.key(0), (V, D)) + 2.0
ROWS = jnp.arange(U)


def make(num_rows=U, **fields):
  spec = user_model.UserConfig(num_tokens=T, num_clusters=C, **fields)
  return user_model.make_user_model(spec, num_rows, TABLE, nnx.Rngs(1))


def table_places(rows):
  """Where each of `rows` [.., D] stands in the table; fails if nowhere."""
  equal = (np.asarray(rows).reshape(-1, 1, D) == np.asarray(TABLE)).all(-1)
  assert (equal.sum(-1) == 1).all()
  return equal.argmax(-1)


def test_individual_prefix_is_generic_plus_offset():
  users = make(init_std=0.5)
  np.testing.assert_allclose(
    users(ROWS)[1:],
    users.generic_prefix[...] + users.offsets[...][1:],
    atol=1e-7,
  )


def test_generic_user_has_no_offset():
  users = make(init_std=0.5)
  np.testing.assert_array_equal(users(ROWS)[0], users.generic())
  assert np.abs(users.offsets[...][0]).min() > 0


def test_cluster_prefix_is_weighted_centers():
  users = make(kind="cluster", init_std=0.5)
  w, centers = np.asarray(users.weights[...]), np.asarray(users.centers[...])
  expected = sum(w[:, c, None, None] * centers[c] for c in range(C))
  np.testing.assert_allclose(users(ROWS), expected, rtol=1e-5, atol=1e-6)
  # One row and five sum their centers in another order.
  np.testing.assert_allclose(users.generic(), users(ROWS)[0], atol=1e-6)


def test_softmax_weights_are_a_distribution():
  users = make(kind="cluster", weights="softmax", init_std=3.0)
  w = np.exp(np.asarray(users.weights[...], np.float64))
  w = w / w.sum(-1, keepdims=True)
  expected = np.einsum("uc,ctd->utd", w, users.centers[...])
  np.testing.assert_allclose(users(ROWS), expected, rtol=1e-5, atol=1e-6)


def test_none_makes_no_prefix_and_has_no_parameter():
  users = make(kind="none")
  assert users(ROWS).shape == (U, 0, D)
  assert users.generic().shape == (0, D)
  assert not jax.tree.leaves(nnx.state(users, user_model.UserParam))


@pytest.mark.parametrize("fields", [
  {},
  {"kind": "cluster"},
  {"kind": "cluster", "weights": "softmax"},
])  # fmt: skip
def test_without_spread_every_user_starts_as_the_generic_one(fields):
  users = make(**fields)
  prefixes = users(ROWS)
  assert (prefixes == users.generic()).all()
  assert np.abs(prefixes).min() > 0


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_init_std_is_the_spread_of_users(kind):
  users = make(num_rows=2_003, kind=kind, init_std=0.25)
  spread = users.offsets if kind == "individual" else users.weights
  # 2,003 rows of at least 2 entries: the error is below 0.25 / sqrt(2 * 4006).
  assert np.std(spread[...]) == pytest.approx(0.25, abs=0.01)


def test_free_cluster_weights_start_around_the_mean_of_centers():
  users = make(kind="cluster")
  np.testing.assert_allclose(
    users.generic(), users.centers[...].mean(0), rtol=1e-5
  )


def test_vocabulary_rows_are_drawn_without_replacement():
  rows = user_model.vocabulary_rows(jax.random.key(2), TABLE, V)
  assert sorted(table_places(rows)) == list(range(V))


def test_more_rows_than_the_vocabulary_repeat_none_more_often_than_needed():
  rows = user_model.vocabulary_rows(jax.random.key(2), TABLE, 2 * V + 5)
  counts = np.bincount(table_places(rows), minlength=V)
  assert set(counts) == {2, 3}


def test_vocabulary_init_takes_token_embeddings():
  users = make(num_rows=23, offset_init="vocabulary")  # 69 rows of 31
  assert len(set(table_places(users.generic()))) == T
  assert set(np.bincount(table_places(users.offsets[...]))) == {2, 3}
  centers = make(kind="cluster").centers[...]
  assert len(set(table_places(centers))) == C * T


def test_normal_init_has_the_mean_and_spread_of_the_table():
  spec = user_model.UserConfig("cluster", 101, 101, init="normal")
  users = user_model.make_user_model(spec, U, TABLE, nnx.Rngs(1))
  centers = np.asarray(users.centers[...]).reshape(-1, D)
  # 10,201 draws of spread about 1: five standard errors are 0.05.
  np.testing.assert_allclose(centers.mean(0), TABLE.mean(0), atol=0.05)
  np.testing.assert_allclose(centers.std(0), TABLE.std(0), atol=0.05)


def test_user_parameters_are_float32_for_a_bfloat16_table():
  spec = user_model.UserConfig(num_tokens=T, offset_init="vocabulary")
  table = TABLE.astype(jnp.bfloat16)
  users = user_model.make_user_model(spec, U, table, nnx.Rngs(1))
  kinds = {x.dtype for x in jax.tree.leaves(nnx.state(users))}
  assert kinds == {jnp.dtype("float32")}


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("kind", "both"),
    ("weights", "sharp"),
    ("init", "zeros"),
    ("offset_init", "zeros"),
    ("num_tokens", 0),
  ],
)
def test_unknown_options_are_named(field, value):
  config = user_model.UserConfig()
  setattr(config, field, value)
  with pytest.raises(ValueError, match=rf"user\.{field} {value!r}"):
    sections.check(config, "user.")


def test_sizes_that_leave_nothing_are_errors():
  with pytest.raises(ValueError, match=r"user\.num_clusters 0"):
    sections.check(
      user_model.UserConfig(kind="cluster", num_clusters=0), "user."
    )
  with pytest.raises(ValueError, match="num_rows 0"):
    make(num_rows=0)
