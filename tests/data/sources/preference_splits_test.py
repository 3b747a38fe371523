"""Who is trained on what of one's own comparisons."""

import pytest

from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run as run_lib
from tests import loading
from tests.data.sources import preference_files_test

RECORD = preference_files_test.RECORD


def config_of(tmp_path, table, **files):
  config = config_lib.Config()
  config.base.path = "models/any"
  config.data.source = "files"
  config.data.path = str(
    preference_files_test.write_jsonl(tmp_path / "train.jsonl", *table)
  )
  for name, value in files.items():
    setattr(config.data.files, name, value)
  config_lib.validate(config)
  return config


def table_of(users, each):
  return [
    RECORD | {"prompt": f"{user} {place}?", "user_id": f"u{user}"}
    for user in range(users)
    for place in range(each)
  ]


def test_the_held_out_split_shares_no_comparison_with_training(tmp_path):
  table = table_of(10, 10)
  # The same choice by two users must not be split.
  table += [record | {"user_id": "u0"} for record in table[50:60]]
  config = config_of(tmp_path, table, heldout_share=0.2)
  found = loading.load(config)
  prompts = [
    {e.prompt for e in split} for split in (found.train, found.heldout)
  ]
  assert not prompts[0] & prompts[1]
  assert 20 <= len(found.heldout) + len(found.unseen) <= 26
  again = loading.load(config)
  assert (again.train, again.heldout) == (found.train, found.heldout)
  assert {p.prompt for p in found.prompts} <= prompts[1]


def test_unseen_users_are_in_no_training_example(tmp_path):
  config = config_of(
    tmp_path, table_of(10, 20), unseen_users=0.3, heldout_share=0.3
  )
  found = loading.load(config)
  seen, unseen = (
    {e.user_id for e in split} for split in (found.train, found.unseen)
  )
  assert len(seen) == 7
  assert len(unseen) == 3
  assert not seen & unseen
  assert {e.user_id for e in found.heldout} <= seen


def test_only_the_busiest_users_up_to_a_limit(tmp_path):
  table = [
    record
    for user in range(6)
    for record in table_of(6, 20)[20 * user :][: 5 + user]
  ]
  table.append(RECORD | {"user_id": None})
  new = RECORD | {"prompt": "z?"}
  heldout = preference_files_test.write_jsonl(
    tmp_path / "held.jsonl", new, new | {"user_id": "u5"}
  )
  config = config_of(
    tmp_path,
    table,
    max_users=2,
    max_per_user=7,
    min_per_user=10,
    heldout_path=str(heldout),
  )
  found = loading.load(config)
  counts = {}
  for example in found.train:
    counts[example.user_id] = counts.get(example.user_id, 0) + 1
  assert counts == {"u5": 7, None: 1}
  assert [e.user_id for e in found.heldout] == ["u5"]
  assert [e.user_id for e in found.unseen] == ["u"]
  assert found.tally.dropped["comparisons beyond max_per_user"] == 3


def test_limits_hold_for_users_who_are_held_out_whole_too(tmp_path):
  table = table_of(60, 1) + table_of(1, 20)
  config = config_of(tmp_path, table, min_per_user=5, heldout_share=0.3)
  found = loading.load(config)
  assert {e.user_id for e in (*found.train, *found.heldout)} == {"u0"}
  assert not found.unseen


def test_held_out_choices_that_training_tells_are_counted(tmp_path):
  table = [
    RECORD | {"prompt": f"{turn}?", "rejected": f"c{number}"}
    for turn in range(20)
    for number in range(3)
  ]
  found = loading.load(config_of(tmp_path, table, heldout_share=0.1))
  known = {each.prompt for each in found.train}
  count = sum(each.prompt in known for each in found.heldout)
  assert count > 0
  assert f"{count} held-out choices of a response" in str(found.tally)
  together = [
    RECORD | {"prompt": f"{turn}?", "rejected": ["c0", "c1"]}
    for turn in range(20)
  ]
  found = loading.load(config_of(tmp_path, together))
  assert "held-out choices" not in str(found.tally)


def test_comparisons_without_a_user_among_others_are_noted(tmp_path):
  table = table_of(2, 9)
  for record in table[:4]:
    del record["user_id"]
  found = loading.load(config_of(tmp_path, table))
  assert "4 comparisons without a user" in str(found.tally)


def test_a_file_without_users_is_warned_of(tmp_path, caplog):
  config = config_of(tmp_path, [{**r, "user_id": None} for r in table_of(2, 9)])
  run_lib.load_dataset(config, None)
  assert "name it by data.files.user_column" in caplog.text


def test_held_out_comparisons_of_a_user_have_a_limit_of_their_own(tmp_path):
  heldout = preference_files_test.write_jsonl(
    tmp_path / "held.jsonl", *(RECORD | {"prompt": f"{n}?"} for n in range(9))
  )
  config = config_of(
    tmp_path, [RECORD], heldout_path=str(heldout), max_heldout_per_user=4
  )
  found = loading.load(config)
  assert (len(found.train), len(found.heldout)) == (1, 4)
  assert found.tally.dropped["comparisons beyond max_heldout_per_user"] == 5


def test_held_out_comparisons_that_training_has_are_dropped(tmp_path):
  # Somebody else's opposite choice between the same two.
  other = RECORD | {"chosen": "c", "rejected": "b", "user_id": "v"}
  heldout = preference_files_test.write_jsonl(
    tmp_path / "held.jsonl", other, RECORD | {"prompt": "z?"}
  )
  config = config_of(tmp_path, [RECORD], heldout_path=str(heldout))
  found = loading.load(config)
  assert [example.prompt for example in found.heldout] == ["z?"]
  assert not found.unseen
  assert "1 held-out comparisons that training has too" in str(found.tally)


def test_nothing_left_is_an_error_with_the_counts(tmp_path):
  config = config_of(tmp_path, table_of(2, 3), min_per_user=9)
  with pytest.raises(ValueError, match=r"no training .* users with too few"):
    loading.load(config)
