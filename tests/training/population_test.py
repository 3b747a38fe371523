import numpy as np
import pytest

from pdpo_jax.training import population


def people(groups, count, seed=0, size=40, noise=0.5):
  """Rows of so many people of each group, around its own place."""
  rng = np.random.default_rng(seed)
  places = 12 * rng.normal(size=(groups, size)) / size**0.5
  return np.concatenate(
    [place + noise * rng.normal(size=(count, size)) for place in places]
  )


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_are_found_and_no_more(groups):
  rows = people(groups, 8)
  labels = population.find_groups(rows)
  expected = np.repeat(np.arange(groups), 8)
  assert labels.max() + 1 == groups
  # The same groups, in whatever order.
  assert len({*zip(labels, expected, strict=True)}) == groups


def test_a_single_user_differs_from_the_generic_one():
  row = np.arange(1.0, 21.0)
  found = population.of_rows(row[None], np.zeros(20), (4, 5), 16)
  assert (found.groups, found.users) == (1, 1)
  along = found.directions / np.linalg.norm(found.directions, axis=1)[:, None]
  assert found.size == 1
  np.testing.assert_allclose(
    np.abs(along[0]), row / np.linalg.norm(row), rtol=1e-5
  )
  assert found.row(0, np.zeros(1)).shape == (4, 5)


@pytest.mark.slow
def test_directions_are_those_in_which_people_differ():
  rng = np.random.default_rng(0)
  spread = np.array([5.0, 2.0, 0.1, 0.1])
  rows = rng.normal(size=(4000, 4)) * spread
  found = population.of_rows(rows, np.zeros(4), (4,), 2)
  lengths = np.linalg.norm(found.directions, axis=1)
  if found.groups == 1:
    np.testing.assert_allclose(lengths, spread[:2], rtol=0.1)
  assert np.all(np.diff(lengths) < 0)
  gram = found.directions @ found.directions.T
  np.testing.assert_allclose(gram, np.diag(lengths**2), atol=1e-3)


def test_clusters_keep_all_their_weights():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(3, 5))
  found = population.of_rows(rows, rng.normal(size=5), (5,), 5)
  assert found.size == 5
  # Shrunk, even directions that no user takes have some length.
  assert np.all(np.linalg.norm(found.directions, axis=1) > 0)


def test_few_users_are_shrunk_more_than_many():
  spread = 0.7 ** np.arange(40)
  rows = np.random.default_rng(0).normal(size=(200, 40)) * spread
  few, many = (
    population.of_rows(rows[:count], np.zeros(40), (40,), 16).shrinkage
    for count in (5, 200)
  )
  assert 0 < many < few / 2 < 0.5


def test_people_who_are_all_the_same_have_no_spread():
  found = population.of_rows(np.zeros((4, 20)), np.zeros(20), (4, 5), 16)
  assert found.size == 0
  np.testing.assert_array_equal(found.means, np.zeros((1, 20)))
