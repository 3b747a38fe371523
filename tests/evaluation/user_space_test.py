import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import user_space
from pdpo_jax.models import user_model

USERS = users_lib.UserIndex(["ann", "bob", "cem"])
TABLE = jax.random.normal(jax.random.key(0), (31, 7))


def make_model(kind, **fields):
  spec = user_model.UserConfig(
    kind=kind, num_tokens=2, num_clusters=3, init_std=0.5, **fields
  )
  return user_model.make_user_model(
    spec, USERS.num_rows, TABLE, nnx.Rngs(params=1)
  )


def two_groups(sizes=(7, 11), width=13):
  """Users around two points, one group after the other, and their groups."""
  rng = np.random.default_rng(0)
  points = rng.normal(size=(2, width))
  rows = [
    point + 0.1 * rng.normal(size=(size, width))
    for point, size in zip(points, sizes, strict=True)
  ]
  return np.concatenate(rows), ["a"] * sizes[0] + ["b"] * sizes[1]


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_vectors_are_those_of_the_users_named(kind):
  model = make_model(kind)
  found = user_space.read_vectors(model, USERS, ["cem", "ann"])
  np.testing.assert_array_equal(found.prefixes, model(jnp.array([3, 1])))
  np.testing.assert_array_equal(found.generic, model.generic())
  assert found.ids == ("cem", "ann")
  with pytest.raises(ValueError, match="'dan' is none"):
    user_space.read_vectors(model, USERS, ["dan"])


def test_features_of_individual_users_are_their_offsets():
  model = make_model("individual")
  found = user_space.read_vectors(model, USERS, USERS.ids)
  offsets = np.asarray(model.offsets[...])[1:].reshape(3, -1)
  np.testing.assert_allclose(found.features, offsets, atol=1e-6)


@pytest.mark.parametrize("weights", ["free", "softmax"])
def test_features_of_clustered_users_are_their_weights(weights):
  model = make_model("cluster", weights=weights)
  found = user_space.read_vectors(model, USERS, USERS.ids)
  np.testing.assert_allclose(
    np.einsum("uc,ctd->utd", found.features, found.centers),
    found.prefixes,
    atol=1e-5,
  )
  if weights == "softmax":
    np.testing.assert_allclose(found.features.sum(1), 1, atol=1e-6)


def test_a_token_is_nearest_to_itself():
  table = np.asarray(TABLE) + 5.0  # a common direction that must not matter
  found = user_space.nearest_tokens(table[[4, 17]], table, 2)
  assert [row[0] for row in found] == [4, 17]
  assert all(len(row) == 2 for row in found)


def test_cosines_are_of_offsets_and_zero_without_any():
  found = user_space.cosine_map(np.array([[2.0, 0], [-3.0, 0], [0, 0]]))
  np.testing.assert_array_equal(found, [[1, -1, 0], [-1, 1, 0], [0, 0, 0]])


def test_projection_keeps_the_groups_apart():
  features, _ = two_groups()
  places, share = user_space.project(features)
  assert places.shape == (18, 2)
  assert 0.8 < share <= 1
  assert abs(places[:7, 0].mean() - places[7:, 0].mean()) > 1


def test_equal_users_have_one_place():
  places, _ = user_space.project(np.ones((3, 5)))
  assert not places.any()


def test_groups_are_recovered_without_being_told():
  features, groups = two_groups()
  found = user_space.recover_groups(features, 2)
  assert user_space.group_agreement(found, groups) == 1.0
  rng = np.random.default_rng(1)
  mixed = user_space.recover_groups(rng.normal(size=(18, 13)), 2)
  assert user_space.group_agreement(mixed, groups) < 0.5


def test_a_probe_finds_what_embeddings_know():
  features, groups = two_groups()
  found = user_space.probe(features, groups)
  assert found.accuracy == 1.0 and found.p_value < 0.02
  assert (found.chance, found.users, found.classes) == (0.5, 18, ("a", "b"))


def test_a_probe_finds_one_direction_among_many_of_noise():
  # As embeddings are: few users, and each with noise of their own.
  rng = np.random.default_rng(3)
  features = rng.normal(size=(10, 1000))
  features[:3] += 2 * rng.normal(size=1000)
  found = user_space.probe(features, ["short"] * 3 + ["long"] * 7)
  assert found.accuracy == 1.0 and found.p_value < 0.05


def test_a_probe_finds_nothing_where_nothing_is():
  rng = np.random.default_rng(2)
  labels = ["a", "b"] * 20
  found = user_space.probe(rng.normal(size=(40, 13)), labels)
  assert found.p_value > 0.05
  assert found.accuracy < 0.75


def test_a_probe_leaves_out_rare_classes_and_users_without_the_attribute():
  features, groups = two_groups()
  groups = [*groups[:-1], "rare"]
  groups[0] = None
  found = user_space.probe(features, groups)
  assert (found.users, found.classes) == (16, ("a", "b"))
  assert user_space.probe(features, ["a"] * 18) is None
