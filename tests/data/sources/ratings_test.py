import json
import random

import pytest

from pdpo_jax.runs import config as config_lib
from tests import loading

ITEMS = 12


def write(folder, ratings=None, items=None):
  """Six people who rate twelve texts, everybody in an order of their own."""
  if items is None:
    items = [{"item_id": f"i{n}", "text": f"text {n}"} for n in range(ITEMS)]
  if ratings is None:
    ratings = []
    for person in "abcdef":
      order = random.Random(person).sample(range(ITEMS), ITEMS)
      ratings += [
        {"user_id": person, "item_id": f"i{item}", "rating": place}
        for place, item in enumerate(order)
      ]
  for name, records in (("ratings", ratings), ("items", items)):
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / f"{name}.jsonl").write_text("".join(lines))


def make_config(folder, **options):
  config = config_lib.Config()
  config.data.source = "ratings"
  config.data.path = str(folder)
  config.data.ratings.train_per_user = 10
  config.data.ratings.heldout_per_user = 4
  config.data.max_bad_share = 0.3
  for name, value in options.items():
    setattr(config.data.ratings, name, value)
  return config


def rating_of(person, text):
  order = random.Random(person).sample(range(ITEMS), ITEMS)
  return order.index(int(text.split()[1]))


def texts_of(examples, person):
  return {
    text
    for example in examples
    if example.user_id == person
    for text in (example.chosen, *example.rejected)
  }


def test_the_chosen_text_was_rated_far_enough_above_the_rejected_one(tmp_path):
  write(tmp_path)
  dataset = loading.load(make_config(tmp_path, least_gap=3.0))
  assert len(dataset.train) == 60
  for example in (*dataset.train, *dataset.heldout):
    (rejected,) = example.rejected
    chosen = rating_of(example.user_id, example.chosen)
    assert chosen - rating_of(example.user_id, rejected) >= 3
  assert dataset.train[0].place == (
    f"{dataset.train[0].user_id}: i{dataset.train[0].chosen.split()[1]} over "
    f"i{dataset.train[0].rejected[0].split()[1]}"
  )


def test_held_out_pairs_are_new_and_of_known_texts_or_of_new_ones(tmp_path):
  write(tmp_path)
  dataset = loading.load(make_config(tmp_path, heldout_texts=0.4))
  pairs = {(each.user_id, each.chosen, each.rejected) for each in dataset.train}
  kinds = set()
  for person in "abcdef":
    known = texts_of(dataset.train, person)
    of_person = [each for each in dataset.heldout if each.user_id == person]
    assert 2 <= len(of_person) <= 4
    for each in of_person:
      assert (person, each.chosen, each.rejected) not in pairs
      kinds.add(len({each.chosen, *each.rejected} & known))
  assert kinds == {0, 2}


def test_in_matched_pairs_everybody_else_likes_both_alike(tmp_path):
  # All but f agree, so that of f's pairs alone the others' means are near.
  ratings = [
    {"user_id": person, "item_id": f"i{item}", "rating": item % 2}
    for person in "abcde"
    for item in range(ITEMS)
  ]
  ratings += [
    {"user_id": "f", "item_id": f"i{item}", "rating": item}
    for item in range(ITEMS)
  ]
  write(tmp_path, ratings)
  options = {"least_gap": 1.0, "most_mean_gap": 0.1, "heldout_texts": 0.0}
  dataset = loading.load(make_config(tmp_path, **options))
  assert {each.user_id for each in dataset.train} == {"f"}
  for each in dataset.train:
    chosen, rejected = (
      int(x.split()[1]) for x in (each.chosen, *each.rejected)
    )
    assert chosen > rejected and (chosen - rejected) % 2 == 0
  assert "5 people with too few pairs" in str(dataset.tally)


def test_a_base_from_scratch_is_taught_what_is_trained_on_alone(tmp_path):
  write(tmp_path)
  options = {"num_users": 1, "heldout_texts": 0.4, "prompt": "Say.\n"}
  dataset = loading.load(make_config(tmp_path, **options))
  (person,) = {each.user_id for each in dataset.train}
  assert {text for _, text in dataset.sft_pairs} == texts_of(
    dataset.train, person
  )
  assert {prompt for prompt, _ in dataset.sft_pairs} == {"Say.\n"}
  assert texts_of(dataset.heldout, person) - texts_of(dataset.train, person)


def test_unseen_people_have_held_out_pairs_alone(tmp_path):
  write(tmp_path)
  dataset = loading.load(make_config(tmp_path, unseen_users=0.34))
  unseen = {each.user_id for each in dataset.unseen}
  assert len(unseen) == 2
  seen = (*dataset.train, *dataset.heldout)
  assert unseen.isdisjoint(each.user_id for each in seen)


def test_who_is_drawn_hangs_on_the_seed_alone(tmp_path):
  write(tmp_path)
  config = make_config(tmp_path, num_users=2)
  first = loading.load(config)
  assert first.digest == loading.load(config).digest
  config.seed = 1
  assert first.digest != loading.load(config).digest


@pytest.mark.parametrize(
  "change, said",
  [
    ({"rating": None}, "rating is no number"),
    ({"rating": "much"}, "rating is no number"),
    ({"rating": True}, "rating is no number"),
    ({"rating": float("nan")}, "rating is no number"),
    ({"user_id": ""}, "no id"),
    ({"item_id": None}, "no id"),
    ({"item_id": "i99"}, "ratings of texts that are not there"),
    ({"rating": 5}, "the same person rated otherwise"),
    ({"user_id": "A"}, "ids look alike"),
  ],
)
def test_what_is_wrong_with_a_rating_is_counted(tmp_path, change, said):
  write(tmp_path)
  file = tmp_path / "ratings.jsonl"
  first = json.loads(file.read_text().splitlines()[0])
  file.write_text(file.read_text() + json.dumps(first | change) + "\n")
  assert said in str(loading.load(make_config(tmp_path)).tally)


@pytest.mark.parametrize(
  "change, said",
  [
    ({"text": " "}, "empty text"),
    ({"text": "another", "item_id": "i0"}, "two texts for one id"),
    ({"text": "text 0", "item_id": "i77"}, "under several ids"),
  ],
)
def test_what_is_wrong_with_a_text_is_counted(tmp_path, change, said):
  write(tmp_path)
  file = tmp_path / "items.jsonl"
  record = {"item_id": "i50", "text": "text 50"} | change
  file.write_text(file.read_text() + json.dumps(record) + "\n")
  assert said in str(loading.load(make_config(tmp_path)).tally)


def test_csv_with_columns_of_other_names_is_read(tmp_path):
  (tmp_path / "stars.csv").write_text(
    "who,film,rating\n"
    + "".join(f"1,{n},{n / 2}\n2,{n},{5 - n / 2}\n" for n in range(ITEMS))
  )
  (tmp_path / "films.csv").write_text(
    "film,text\n" + "".join(f"{n},text {n}\n" for n in range(ITEMS))
  )
  options = {
    "ratings_file": "stars",
    "texts_file": "films",
    "user_column": "who",
    "item_column": "film",
  }
  dataset = loading.load(make_config(tmp_path, **options))
  for each in dataset.train:
    chosen, rejected = (
      int(x.split()[1]) for x in (each.chosen, *each.rejected)
    )
    assert (chosen > rejected) == (each.user_id == "1")


def test_a_folder_without_its_files_is_an_error_that_names_them(tmp_path):
  with pytest.raises(
    ValueError, match=r"one file items\.jsonl .* there is none"
  ):
    loading.load(make_config(tmp_path))
  write(tmp_path)
  (tmp_path / "items.csv").write_text("item_id,text\n")
  with pytest.raises(ValueError, match=r"there is items\.csv, items\.jsonl"):
    loading.load(make_config(tmp_path))


def test_nobody_with_enough_pairs_is_an_error_that_says_what_to_lower(tmp_path):
  write(tmp_path)
  with pytest.raises(ValueError, match=r"lower data\.ratings\.train_per_user"):
    loading.load(make_config(tmp_path, train_per_user=500))


def test_who_rated_thousands_of_texts_costs_no_more_than_a_thousand(tmp_path):
  count = 3_000
  items = [{"item_id": n, "text": f"text {n}"} for n in range(count)]
  ratings = [
    {"user_id": "ann", "item_id": n, "rating": n % 7} for n in range(count)
  ]
  write(tmp_path, ratings, items)
  options = {"train_per_user": 500, "heldout_per_user": 100}
  dataset = loading.load(make_config(tmp_path, **options))
  assert (len(dataset.train), len(dataset.heldout)) == (500, 100)
  texts = texts_of([*dataset.train, *dataset.heldout], "ann")
  assert 500 < len(texts) <= 1_000


def test_ids_of_items_are_called_so(tmp_path):
  write(tmp_path)
  file = tmp_path / "items.jsonl"
  file.write_text(file.read_text() + '{"item_id": 7, "text": "so"}\n')
  with pytest.raises(ValueError, match="item ids are of mixed type: 7"):
    loading.load(make_config(tmp_path))
