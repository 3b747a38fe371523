import json
import time

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import users


def example(user_id):
  return structs.PreferenceExample("p", " a", (" b",), user_id=user_id)


def test_rows_follow_the_given_order_and_row_0_is_generic():
  index = users.UserIndex(["zoe", "adam"])
  assert index.row_of(None) == 0
  assert [index.row_of(i) for i in index.ids] == [1, 2]
  assert index.num_rows == 3


def test_users_of_examples_are_sorted_naturally_whatever_the_order():
  ids = ["w10", "w2", None, "w10", "w1", "a", "w02"]
  expected = ("a", "w1", "w02", "w2", "w10")
  for order in (ids, ids[::-1]):
    index = users.UserIndex.from_examples(map(example, order))
    assert index.ids == expected


def test_json_round_trip_keeps_rows():
  index = users.UserIndex(["b", "a", "é"])
  again = users.UserIndex.from_json(json.loads(json.dumps(index.to_json())))
  assert again.ids == index.ids
  assert again.row_of("é") == 3


def test_rows_that_belong_to_nobody_lie_behind_and_pass_through_json():
  index = users.UserIndex(["a", "b"], spare=2)
  assert index.num_rows == 5
  again = users.UserIndex.from_json(json.loads(json.dumps(index.to_json())))
  assert (again.ids, again.rows) == (index.ids, index.rows)
  with pytest.raises(ValueError, match="none of this run's 2 users"):
    index.row_of("stranger")
  # A new user takes the first of them.
  more = index.extended(users.UserIndex(["c", "a"]))
  assert (more.ids, more.num_rows) == (("a", "b", "c"), 4)


def test_whoever_goes_leaves_a_row_of_nobodys_and_moves_no_other():
  index = users.UserIndex(["a", "b", "c"]).without("b")
  assert index.rows == ("a", None, "c")
  assert (index.ids, index.num_rows) == (("a", "c"), 4)
  assert "b" not in index and None not in index
  assert (index.row_of("c"), index.row_or_generic("b")) == (3, 0)
  again = users.UserIndex.from_json(json.loads(json.dumps(index.to_json())))
  assert again.rows == index.rows
  # Who comes later takes no row before the last that is somebody's.
  more = index.extended(users.UserIndex(["b"]))
  assert more.rows == ("a", None, "c", "b")
  assert index.without("c").extended(users.UserIndex(["d"])).rows == ("a", "d")


def test_json_that_is_no_list_is_an_error():
  with pytest.raises(ValueError, match="list of ids in row order"):
    users.UserIndex.from_json({"a": 1})


def test_unknown_user_is_told_near_ids_and_the_way_out():
  index = users.UserIndex(["worker1", "worker2", "someone"])
  with pytest.raises(ValueError) as error:
    index.row_of("worker3")
  message = str(error.value)
  assert "'worker3' is none of this run's 3 users" in message
  assert "'worker1'" in message
  assert "'someone'" not in message
  assert "generic answer" in message


@pytest.mark.parametrize("bad", ["", 7])
def test_empty_id_is_an_error(bad):
  with pytest.raises(ValueError, match="row 2"):
    users.UserIndex(iter(["a", bad]))


def test_duplicate_id_is_an_error():
  with pytest.raises(ValueError, match="'a' is given twice, for rows 1 and 3"):
    users.UserIndex(["a", "b", "a"])


def test_a_million_users_are_no_burden():
  start = time.perf_counter()
  index = users.UserIndex(f"user{i}" for i in range(1_000_000))
  assert index.row_of("user999999") == 1_000_000
  with pytest.raises(ValueError, match="1,000,000 users"):
    index.row_of("nobody")
  # About 1 s on a laptop core; the bound is wide for shared machines.
  assert time.perf_counter() - start < 20
