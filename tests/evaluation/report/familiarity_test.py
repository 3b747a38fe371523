import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation.report import accuracy, by_user, familiarity, strata
from pdpo_jax.runs import scores as scores_lib

USERS = [f"u{number}" for number in range(8)]


def found(known_right, new_right, new_texts=4):
  """Eight people with four pairs of known texts, and so many of new ones.

  P is right in so many of each four, and V in half of all.
  """
  train, heldout, ours, theirs = [], [], [], []
  for user in USERS:
    train.append(structs.PreferenceExample("?", "good", ("bad",), user))
    for place in range(4):
      heldout.append(
        structs.PreferenceExample(f"{place}?", "good", ("bad",), user)
      )
      ours.append(1 if place < known_right else -1)
      theirs.append(1 if place % 2 else -1)
    for place in range(new_texts):
      texts = f"{user} {place}", (f"{user} not {place}",)
      heldout.append(structs.PreferenceExample("?", *texts, user))
      ours.append(1 if place < new_right else -1)
      theirs.append(1 if place % 2 else -1)
  scores = {
    name: {
      "heldout": scores_lib.make(heldout, np.array(values, np.float32)[:, None])
    }
    for name, values in (("P", ours), ("V", theirs))
  }
  dataset = dataset_lib.Dataset(train, heldout, [])
  return scores, familiarity.find(scores, dataset, "V")


def test_accuracy_stands_apart_for_known_and_new_texts():
  _, findings = found(known_right=4, new_right=2)
  numbers = findings.to_json()["heldout"]
  assert numbers.keys() == {"person", "anybody"}
  known, new = numbers["person"]["both"], numbers["person"]["none"]
  assert (known["num_pairs"], new["num_pairs"]) == (32, 32)
  assert known["policies"]["P"]["users"] == 1
  assert known["policies"]["P"]["gain"]["mean"] == 0.5
  assert known["policies"]["P"]["gain"]["p_value"] == 2 / 2**8
  assert new["policies"]["P"]["users"] == 0.5
  assert new["policies"]["P"]["gain"]["mean"] == 0
  assert "gain" not in new["policies"]["V"]


def test_the_verdict_of_a_run_that_only_knows_texts_does_not_speak_of_taste():
  scores, findings = found(known_right=4, new_right=2)
  accuracies = accuracy.Findings(
    accuracy.compare(scores, {}, "V"), "P", "V", {}
  )
  verdict = accuracies.verdict(
    {"heldout": familiarity.new_texts(findings, "heldout")}
  )
  assert "is more accurate than V, which is not shown on texts" in verdict
  assert "+25.0 points on held-out choices" in verdict
  assert "+0.0 on those between texts new to the person" in verdict


def test_too_few_pairs_of_new_texts_say_nothing():
  _, findings = found(known_right=4, new_right=1, new_texts=2)
  assert familiarity.new_texts(findings, "heldout") == {}
  assert findings.to_json()["heldout"]["person"]["none"] == {
    "num_pairs": 16,
    "policies": {},
  }
  (table,) = familiarity.section(findings).tables
  assert table.lines[0][:3] == (
    "neither text the person compared in training",
    "–",
    "16",
  )


def test_where_all_texts_are_new_or_none_is_a_run_is_told_so():
  _, findings = found(known_right=4, new_right=1, new_texts=0)
  assert familiarity.new_texts(findings, "heldout") == {}
  nothing = strata.Findings((), "V", {"heldout": 32})
  assert familiarity.new_texts(nothing, "heldout") is None


def test_a_table_has_each_policy_and_says_what_is_left_out():
  _, findings = found(known_right=4, new_right=4)
  (table,) = familiarity.section(findings).tables
  assert [line[:3] for line in table.lines] == [
    (f"{title} {who} compared in training", name, "32")
    for who in ("the person", "somebody")
    for title in ("neither text", "both texts")
    for name in ("P", "V")
  ]
  assert "cannot be told" not in table.note
  more = strata.Findings(findings.compared, "V", {"heldout": 70})
  (table,) = familiarity.section(more).tables
  assert "6 pairs are in no line" in table.note


def test_users_are_listed_one_by_one_with_their_intervals():
  scores, _ = found(known_right=4, new_right=2)
  accuracies = accuracy.Findings(
    accuracy.compare(scores, {}, "V"), "P", "V", {}
  )
  section = by_user.section(accuracies)
  (table,) = section.tables
  assert table.columns == ("seen user", "choices", "P", "V")
  assert len(table.lines) == 8
  # Six of eight right: Wilson's interval is 40.9 to 92.9.
  assert table.lines[0] == ("u0", "8", "75.0 [40.9, 92.9]", "50.0 [21.5, 78.5]")
  assert section.figures[0].png


def test_of_many_users_both_ends_are_listed():
  names = [f"u{number:02}" for number in range(30)]
  ratios = np.ones((30, 3), np.float32)
  ratios[:20, 0] = ratios[:5, 1] = -1
  scores = scores_lib.Scores([str(n) for n in range(30)], names, ratios)
  accuracies = accuracy.Findings(
    accuracy.compare({"P": {"heldout": scores}}, {}, None), "P", None, {}
  )
  (table,) = by_user.section(accuracies).tables
  listed = [line[0] for line in table.lines]
  assert listed == names[:10] + names[-10:]
  assert "of 30; report.json has all" in table.note
