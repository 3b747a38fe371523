import collections
import json
import random
import sys
import types

import pytest

from pdpo_jax.runs import config as config_lib
from tests import loading

SHORT, LONG = " a dog ran", " a dog ran far away"
SFT = ("sup1", "sup2")


def make_record(worker, name, texts=(SHORT, LONG), policies=SFT, **info):
  return {
    "info": {
      "id": f"t3_{name}",
      "post": f"post {name}",
      "title": f"title {name}",
      "subreddit": "pets",
      "site": None,
      "article": None,
    }
    | info,
    "summaries": [
      {"text": text, "policy": policy, "note": None}
      for text, policy in zip(texts, policies, strict=True)
    ],
    "choice": 0,
    "worker": worker,
    "batch": "batch1",
    "split": "train",
    "extra": {"confidence": None},
  }


def write(folder, train, validation=None):
  """Writes both files; without validation records, with one of "ann"."""
  if validation is None:
    validation = [make_record("ann", "held")]
  for name, records in (("train", train), ("validation", validation)):
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / f"{name}.jsonl").write_text("".join(lines))


def make_config(folder, **options):
  config = config_lib.Config()
  config.data.source = "tldr"
  config.data.path = str(folder)
  config.data.tldr.num_workers = 2
  config.data.tldr.short_workers = ("2",)
  for name, value in options.items():
    setattr(config.data.tldr, name, value)
  return config


def two_workers(*texts):
  """Two comparisons of "ann" and one of "bob" for each pair of texts."""
  return [
    make_record(worker, f"{number}{worker}{place}", pair)
    for place, pair in enumerate(texts or ((SHORT, LONG),))
    for number, worker in enumerate(("ann", "bob", "ann"))
  ]


def test_a_prompt_is_the_post_in_the_form_that_the_policies_saw(tmp_path):
  write(tmp_path, two_workers())
  dataset = loading.load(make_config(tmp_path))
  assert dataset.train[0].prompt == (
    "SUBREDDIT: r/pets\nTITLE: title 0ann0\nPOST: post 0ann0\nTL;DR:"
  )
  assert dataset.prompts[0].prompt == dataset.heldout[0].prompt
  assert dataset.heldout[0].prompt.endswith("POST: post held\nTL;DR:")
  assert [each.place for each in dataset.train] == [
    f"train.jsonl:{line}" for line in (1, 2, 3)
  ]


def test_workers_prefer_by_length_wherever_the_summary_stands(tmp_path):
  write(tmp_path, two_workers((SHORT, LONG), (LONG, SHORT)))
  dataset = loading.load(make_config(tmp_path))
  assert len(dataset.train) == 6
  for each in dataset.train:
    pair = (each.chosen, *each.rejected)
    assert pair == ((SHORT, LONG) if each.user_id == "2" else (LONG, SHORT))
  assert (dataset.short_users, dataset.long_users) == (("2",), ("1",))


def test_prompts_of_comparisons_end_in_a_space_and_of_answers_do_not(tmp_path):
  write(tmp_path, two_workers())
  dataset = loading.load(make_config(tmp_path, trailing_space=True))
  for each in [*dataset.train, *dataset.heldout]:
    assert each.prompt.endswith("\nTL;DR: ")
  assert all(each.prompt.endswith("\nTL;DR:") for each in dataset.prompts)


def test_the_released_selection_keeps_what_is_empty_or_known_and_not_too_long(
  tmp_path,
):
  # What its limit of 4,800 counts besides: a user's name before the prompt.
  front = len("USER: 1" + 10 * "<|endoftext|>" + "||")
  prompt = "SUBREDDIT: r/pets\nTITLE: title x\nPOST: post x\nTL;DR: "
  longest = " " + "x" * (4800 - front - len(prompt) - 1)
  records = [
    make_record("ann", "a", ("", LONG)),
    make_record("ann", "x", (longest, SHORT)),
    make_record("ann", "x", (longest + "x", SHORT)),
    make_record("bob", "b"),
  ]
  write(tmp_path, records, [make_record("ann", "b")])
  config = make_config(
    tmp_path,
    trailing_space=True,
    selection="authors",
    length_unit="characters",
  )
  dataset = loading.load(config)
  assert [(each.chosen, *each.rejected) for each in dataset.train] == [
    (LONG, ""), (longest, SHORT), (SHORT, LONG),
  ]  # fmt: skip
  assert dataset.tally.dropped["train records over 4,661 characters"] == 1
  assert [each.prompt for each in dataset.heldout] == [dataset.train[2].prompt]
  with pytest.raises(ValueError, match="no validation post"):
    loading.load(make_config(tmp_path))


@pytest.mark.parametrize(
  ("unit", "chosen"),
  [("words", " a b c"), ("characters", " unbelievable"), ("tokens", " x y")],
)
def test_length_is_counted_in_the_unit(tmp_path, unit, chosen):
  texts = (" a b c", " unbelievable", " x y")
  pairs = [(chosen, text) for text in texts if text != chosen]
  write(tmp_path, two_workers(*pairs))
  config = make_config(tmp_path, length_unit=unit, short_workers=())
  dataset = loading.load(
    config, count_tokens=lambda texts: [text.count("y") for text in texts]
  )
  assert len(dataset.train) == 6
  assert {each.chosen for each in dataset.train} == {chosen}


def test_tokens_without_a_tokenizer_are_an_error(tmp_path):
  write(tmp_path, two_workers())
  with pytest.raises(ValueError, match="'tokens' needs a tokenizer"):
    loading.load(make_config(tmp_path, length_unit="tokens"))


def test_a_tie_is_dropped_or_its_first_summary_chosen(tmp_path):
  write(tmp_path, two_workers((SHORT, LONG), (" x y", " y z")))
  dropped = loading.load(make_config(tmp_path))
  assert len(dropped.train) == 3
  reason = "train records of equal length in words"
  assert dropped.tally.dropped[reason] == 3
  first = loading.load(make_config(tmp_path, ties="first"))
  ties = [each for each in first.train if each.chosen not in (SHORT, LONG)]
  assert {each.user_id for each in ties} == {"1", "2"}
  assert {(each.chosen, each.rejected) for each in ties} == {
    (" x y", (" y z",))
  }
  assert first.tally.dropped == {}


@pytest.mark.parametrize("ties", ["drop", "first"])
@pytest.mark.parametrize(
  ("pair", "reason"),
  [
    ((SHORT, SHORT), "train records of twice the same summary"),
    ((SHORT, " "), "train records with an empty summary"),
    (("", ""), "train records with an empty summary"),
  ],
)
def test_what_is_no_comparison_is_dropped(tmp_path, pair, reason, ties):
  write(tmp_path, [*two_workers(), make_record("ann", "x", pair)])
  dataset = loading.load(make_config(tmp_path, ties=ties))
  assert dataset.tally.dropped == {reason: 1}
  assert len(dataset.train) == 3


@pytest.mark.parametrize(
  ("policies", "kept"),
  [
    (("sup1", "sup2"), True),
    (("sup2", "sup4_ppo_rm3_kl10"), False),
    (("ref", "sup2"), False),
    (("sup2", "supcnn"), False),
    (("other", "else"), False),
  ],
)
def test_only_comparisons_of_sft_policies_are_kept(tmp_path, policies, kept):
  write(
    tmp_path,
    [*two_workers(), make_record("ann", "x", policies=policies)],
    [make_record("ann", "held"), make_record("ann", "y", policies=policies)],
  )
  dataset = loading.load(make_config(tmp_path))
  assert (len(dataset.train), len(dataset.heldout)) == (3 + kept, 1 + kept)
  assert len(dataset.prompts) == 1 + kept
  assert dataset.tally.dropped == (
    {}
    if kept
    else {
      "train records of other policies": 1,
      "validation records of other policies": 1,
    }
  )
  everything = loading.load(make_config(tmp_path, sft_only=False))
  assert len(everything.train) == 4


def test_the_busiest_workers_become_users_by_what_is_left_for_training(
  tmp_path,
):
  def of(worker, count, **changes):
    return [
      make_record(worker, f"{worker}{n}", **changes) for n in range(count)
    ]

  train = [
    *of("dan", 3),
    *of("cat", 4),
    *of("bob", 4),
    # Not counted: another policy, and articles.
    *of("eve", 9, policies=("ref", "sup1")),
    *of("fay", 9, post=None, article="news"),
    *of("ann", 5),
  ]
  # Validation records do not make a worker busy.
  validation = [
    make_record(worker, f"{worker}{n + 20}")
    for worker in ("ann", "bob", "cat", "dan")
    for n in range(9)
  ]
  write(tmp_path, train, validation)
  dataset = loading.load(make_config(tmp_path, num_workers=3))
  counts = collections.Counter(each.user_id for each in dataset.train)
  assert counts == {"1": 5, "2": 4, "3": 4}
  by_user = {each.user_id: each.prompt for each in dataset.train}
  assert "bob" in by_user["2"] and "cat" in by_user["3"]
  heldout = collections.Counter(each.user_id for each in dataset.heldout)
  assert heldout == {"1": 9, "2": 9, "3": 9}
  assert dataset.long_users == ("1", "3")
  assert dataset.tally.dropped == {
    "train records of articles": 9,
    "train records of other policies": 9,
    "train records of other workers": 3,
    "validation records of other workers": 9,
  }


def test_posts_of_the_training_file_are_not_held_out(tmp_path):
  train = [
    *two_workers(),
    make_record("zoe", "p"),
    make_record("ann", "q", policies=("ref", "ref")),
  ]
  validation = [
    make_record("ann", "held"),
    make_record("ann", "p"),
    make_record("bob", "q"),
    # The same text by another id, and the same id with another text.
    make_record("bob", "p", id="t3_new"),
    make_record("bob", "p", post="edited"),
  ]
  write(tmp_path, train, validation)
  dataset = loading.load(make_config(tmp_path))
  prompt = "SUBREDDIT: r/pets\nTITLE: title held\nPOST: post held\nTL;DR:"
  assert [each.prompt for each in dataset.heldout] == [prompt]
  assert [each.prompt for each in dataset.prompts] == [prompt]
  reason = "validation records of posts that training has"
  assert dataset.tally.dropped[reason] == 4


def test_prompts_are_different_posts_of_any_worker_drawn_by_the_seed(tmp_path):
  validation = [
    make_record(worker, f"held{number}")
    for worker in ("ann", "zoe")
    for number in range(20 if worker == "ann" else 40)
  ]
  write(tmp_path, two_workers(), validation)
  config = make_config(tmp_path)
  config.answers.num_prompts = 30
  draws = []
  for config.seed in (0, 0, 1):
    draws.append(loading.load(config).prompts)
    assert len(set(draws[-1])) == 30
  assert draws[0] == draws[1] != draws[2]
  config.answers.num_prompts = 50
  dataset = loading.load(config)
  assert len(dataset.prompts) == 40
  assert dataset.tally.noted == {"prompts fewer than answers.num_prompts": 10}


def test_loading_depends_on_the_rows_not_on_the_recorded_choice(tmp_path):
  records = two_workers((SHORT, LONG), (LONG, SHORT))
  write(tmp_path, records)
  first = loading.load(make_config(tmp_path))
  write(tmp_path, [record | {"choice": 1} for record in records])
  assert loading.load(make_config(tmp_path)).train == first.train


@pytest.mark.parametrize(
  ("reason", "change"),
  [
    ("missing field", lambda record: record.pop("info")),
    ("missing field", lambda record: record.pop("worker")),
    ("missing field", lambda record: record["info"].pop("title")),
    ("missing field", lambda record: record["info"].pop("id")),
    ("missing field", lambda record: record["summaries"][0].pop("policy")),
    ("empty id", lambda record: record.update(worker="")),
    ("wrong type", lambda record: record["info"].update(post=None)),
    ("wrong type", lambda record: record["info"].update(subreddit=None)),
    ("wrong type", lambda record: record["summaries"][1].update(text=3)),
    ("wrong type", lambda record: record.update(summaries=["a", "b"])),
    ("wrong type", lambda record: record.update(summaries={"a": "b"})),
    ("not two summaries", lambda record: record["summaries"].pop()),
  ],
)
def test_a_broken_record_is_counted_and_too_many_are_an_error(
  tmp_path, reason, change
):
  record = make_record("ann", "x")
  change(record)
  write(tmp_path, [*two_workers(), record])
  config = make_config(tmp_path)
  with pytest.raises(ValueError, match=f"train.jsonl:4: {reason}"):
    loading.load(config)
  config.data.max_bad_share = 0.2
  dataset = loading.load(config)
  assert dataset.tally.broken == {reason: 1}
  assert len(dataset.train) == 3


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl"])
def test_a_folder_without_one_of_the_files_is_an_error(tmp_path, name):
  write(tmp_path, two_workers())
  (tmp_path / name).unlink()
  with pytest.raises(ValueError, match=f"has no {name}; give a folder"):
    loading.load(make_config(tmp_path))


def test_fewer_workers_than_asked_for_are_an_error(tmp_path):
  write(tmp_path, two_workers())
  with pytest.raises(ValueError, match="num_workers 3: only 2 workers"):
    loading.load(make_config(tmp_path, num_workers=3))


def test_a_worker_whose_comparisons_are_all_ties_is_an_error(tmp_path):
  train = [*two_workers()[::2], make_record("bob", "x", (" x y", " y z"))]
  write(tmp_path, train)
  with pytest.raises(ValueError, match=r"'bob' \(user '2'\) has no compar"):
    loading.load(make_config(tmp_path))
  assert len(loading.load(make_config(tmp_path, ties="first")).train) == 3


def test_no_post_to_be_summarised_is_an_error_with_the_counts(tmp_path):
  train = two_workers()
  write(tmp_path, train, train)
  with pytest.raises(
    ValueError, match=r"no validation post.*6 records; dropped"
  ):
    loading.load(make_config(tmp_path))


def test_the_hub_is_asked_for_comparisons(tmp_path, monkeypatch):
  splits = {
    "train": two_workers(),
    "validation": [make_record("ann", "held")],
  }
  write(tmp_path, *splits.values())
  local = loading.load(make_config(tmp_path))

  def load_dataset(path, name, split):
    assert (path, name) == ("someone/feedback", "comparisons")
    return splits[split]

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)
  hub = loading.load(make_config("someone/feedback"))
  assert (hub.train, hub.heldout) == (local.train, local.heldout)


def test_tldr_is_a_source(tmp_path):
  write(tmp_path, two_workers())
  config = make_config(tmp_path)
  assert loading.load(config).train == loading.load(config).train


def test_the_defaults_give_ten_users_of_whom_three_prefer_short(tmp_path):
  rng = random.Random(0)
  train = [
    make_record(
      f"worker{number:02}",
      f"{number} {place}",
      [" word" * rng.randint(1, 9) for _ in range(2)],
    )
    for number in range(14)
    for place in range(40 - number)
  ]
  write(tmp_path, train, [make_record("worker00", "held")])
  config = config_lib.Config()
  config.data.path = str(tmp_path)
  dataset = loading.load(config)
  assert dataset.short_users == ("4", "5", "6")
  assert dataset.long_users == ("1", "2", "3", "7", "8", "9", "10")
  for each in dataset.train:
    words = [len(text.split()) for text in (each.chosen, *each.rejected)]
    assert (words[0] < words[1]) == (each.user_id in dataset.short_users)
    assert words[0] != words[1]
