import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import length_strata
from pdpo_jax.evaluation.report import length_control
from pdpo_jax.runs import scores as scores_lib

USERS = [f"u{number}" for number in range(8)]
SHORT, LONG = "yes", "yes, of course"


def example(user, chosen, *rejected):
  return structs.PreferenceExample("?", chosen, rejected, user)


def by_length(example, sign):
  """The margins of who goes by length alone."""
  chosen = len(example.chosen)
  return [sign * (chosen - len(text)) for text in example.rejected]


def find(heldout, ours, theirs):
  scores = {
    name: {
      "heldout": scores_lib.make(
        heldout, np.array([*map(policy, heldout)], np.float32)
      )
    }
    for name, policy in (("P", ours), ("V", theirs))
  }
  dataset = dataset_lib.Dataset([], heldout, [])
  return length_control.find(scores, dataset, "V")


# The first half like it short, three times in four; the others long.
LIKES = {user: -1 if place < 4 else 1 for place, user in enumerate(USERS)}
CHOICES = [
  example(user, *texts)
  for user in USERS
  for place in range(8)
  for texts in [
    (SHORT, LONG) if (place < 6) == (LIKES[user] < 0) else (LONG, SHORT)
  ]
]


def test_who_knows_each_taste_in_length_and_nothing_else_is_right_in_half():
  findings = find(
    CHOICES,
    lambda each: by_length(each, LIKES[each.user_id]),
    lambda each: by_length(each, 1),
  )
  numbers = findings.to_json()["heldout"]
  balanced = numbers["balanced"]["shorter and longer"]
  assert balanced["num_pairs"] == len(CHOICES)
  assert balanced["policies"]["P"]["users"] == 0.5
  assert balanced["policies"]["V"]["users"] == 0.5
  assert balanced["policies"]["P"]["gain"]["mean"] == 0
  # Without control, that looks personal: three in four against half.
  kinds = numbers["length"]
  assert kinds["shorter"]["policies"]["P"]["users"] == 0.5
  assert kinds["shorter"]["policies"]["P"]["gain"]["mean"] == 0.5


def test_who_knows_more_than_length_is_right_in_more_than_half():
  findings = find(CHOICES, lambda each: [1], lambda each: by_length(each, 1))
  balanced = findings.to_json()["heldout"]["balanced"]["shorter and longer"]
  assert balanced["policies"]["P"]["users"] == 1
  assert balanced["policies"]["P"]["gain"]["mean"] == 0.5
  assert balanced["policies"]["P"]["gain"]["p_value"] == 2 / 2**8


def test_people_who_chose_one_length_alone_have_no_balance():
  heldout = [example(user, SHORT, LONG) for user in USERS for _ in range(5)]
  heldout += [example("x", LONG, SHORT)] * 20
  findings = find(heldout, lambda each: [1], lambda each: [-1])
  data = dataset_lib.Dataset([], heldout, [])
  (table,) = length_control.section(findings, {}, data).tables
  assert [line[:3] for line in table.lines] == [
    ("the chosen response is shorter", "P", "40"),
    ("the chosen response is shorter", "V", "40"),
    # All of one person.
    ("the chosen response is longer", "–", "20"),
    ("shorter and longer, which count the same", "–", "60"),
  ]


@pytest.mark.parametrize(
  ("chosen", "kind"),
  [
    (100, "alike"),
    (109, "alike"),
    (112, "longer"),
    (92, "alike"),
    (90, "shorter"),
    (0, "shorter"),
  ],
)
def test_within_a_tenth_lengths_are_alike(chosen, kind):
  heldout = [example("a", "x" * chosen, "y" * 100)]
  scores = scores_lib.make(heldout, np.ones((1, 1), np.float32))
  (stratum,) = length_strata.divide(
    {"P": {"heldout": scores}}, dataset_lib.Dataset([], heldout, [])
  )
  assert (stratum.kind, stratum.pairs) == (kind, 1)


def test_each_pair_of_a_choice_has_its_own_length():
  heldout = [example("a", "x" * 10, "y", "y" * 99, "y" * 10)]
  scores = scores_lib.make(heldout, np.ones((1, 3), np.float32))
  strata = length_strata.divide(
    {"P": {"heldout": scores}}, dataset_lib.Dataset([], heldout, [])
  )
  places = {
    each.kind: np.flatnonzero(~np.isnan(each.scores["P"].ratios[0])).tolist()
    for each in strata
  }
  assert places == {"shorter": [1], "alike": [2], "longer": [0]}
