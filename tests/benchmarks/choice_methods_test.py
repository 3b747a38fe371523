"""What newcomers learn from is not what they are measured by."""

from benchmarks import choice_methods
from tests import loading
from tests.data.sources import ratings_test


def test_newcomers_learn_from_what_training_would_have_had(tmp_path):
  ratings_test.write(tmp_path)
  config = ratings_test.make_config(tmp_path)
  everybody = loading.load(config)
  config.data.ratings.unseen_users = 0.5
  dataset = loading.load(config)
  most = config.data.ratings.train_per_user
  own, held = choice_methods.of_strangers(dataset.unseen, most)
  assert len(own) == 3
  for person, examples in own.items():
    assert examples == [x for x in everybody.train if x.user_id == person]
    assert [x for x in held if x.user_id == person] == [
      x for x in everybody.heldout if x.user_id == person
    ]


def test_draws_are_the_same_choices_in_orders_of_their_own():
  own = {"ann": list("abcdefgh"), "bea": list("ABCDEFGH")}
  first, again, other = (choice_methods.draw(own, n) for n in (0, 0, 1))
  assert first == again != other
  for drawn in (first, other):
    assert {name: sorted(each) for name, each in drawn.items()} == own
    assert drawn["ann"] != [each.lower() for each in drawn["bea"]]
