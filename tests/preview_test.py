import collections
import dataclasses
import json

import pytest

from pdpo_jax import preview as report
from pdpo_jax.core import structs
from pdpo_jax.data import dataset, records, tokenize
from pdpo_jax.data.sources import preference_files
from pdpo_jax.runs import config as config_lib


def example(user, number, **fields):
  return structs.PreferenceExample(
    f"the cat {number}", " sat", (" ate", " ran"), user, **fields
  )


@pytest.fixture
def made():
  tally = records.Tally()
  tally.read(9)
  tally.drop("ties")
  train = [example("ann", n, user_text="I am") for n in range(6)]
  train += [example("bob", 7), example(None, 8)]
  found = dataset.Dataset(
    train=train,
    heldout=[example("ann", 9)],
    prompts=[],
    unseen=[example("eve", 10)],
    tally=tally,
  )
  config = config_lib.Config(name="mine")
  config.train.batch_size = 4
  tokenizer = tokenize.train_tokenizer(["the cat sat", "I ran"], 270)
  return config, found, tokenizer


def test_the_report_counts_examples_users_and_losses(made):
  text, lengths = report.make_report(*made)
  for part in (
    "read:\n  9 records\n  dropped: 1 ties\n\n",
    "train: 8 examples; nothing cut",
    "heldout: 1 examples",
    "unseen: 1 examples",
    "users: 2 in training, 1 unseen; 1 examples of unknown users",
    "examples a user: 1 to 6, median 3.5",
    "rejected responses an example: 8 with 2",
    "batches an epoch: 2; shapes",
  ):
    assert part in text
  assert len(lengths.prompts) == 8
  assert len(lengths.responses) == 24
  for title, values in (
    ("prompts", lengths.prompts),
    ("responses", lengths.responses),
  ):
    block = text.partition(f"{title} of training")[2].partition("\n\n")[0]
    rows = [line.split() for line in block.splitlines()[1:]]
    assert sum(int(row[3].replace(",", "")) for row in rows) == len(values)


def test_the_report_shows_each_kind_of_row_and_what_is_not_read(made, tmp_path):
  config, found, tokenizer = made
  tally = records.Tally()
  table = [
    {"prompt": "a?", "chosen": chosen, "rejected": rejected, "user_id": "u"}
    for chosen, rejected in (
      ("b", "['c', 'd']"),
      ("b", " "),
      ("b", "b"),
      ([{"role": "tool", "content": "b"}], "c"),
      ([{"from": "gpt", "value": "b"}], "c"),
    )
  ]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, table)))
  (tmp_path / "._a.jsonl").touch()
  (tmp_path / "notes.txt").touch()
  preference_files.read(str(tmp_path), "user_id", tally)
  found = dataclasses.replace(found, tally=tally)
  text, _ = report.make_report(config, found, tokenizer)
  for line in (
    "  5 records",
    "  broken: 1 empty response, 1 unknown role",
    "  dropped: 1 comparisons of equal responses",
    "1 lists of responses written as text, which are read",
    "1 messages of 'gpt', read as assistant",
    "1 rejected responses equal to the chosen one",
    "  not read (hidden): '._a.jsonl'",
    "  not read (no format of records): 'notes.txt'",
  ):
    assert line in text


@pytest.mark.parametrize(
  ("kind", "place", "start"),
  [
    ("individual", "front", "[10 vectors of user 'ann']I am\n\nthe"),
    ("individual", "after_bos", "I[10 vectors of user 'ann'] am\n\nthe"),
    ("none", "front", "I am\n\nthe"),
  ],
)
def test_examples_show_where_the_prefix_stands(made, kind, place, start):
  config = made[0]
  config.user.kind = kind
  config.user.prefix_position = place
  text, _ = report.make_report(*made)
  assert f"── example 0 ──\n{start}" in text
  assert "── chosen ──\n sat<|endoftext|>" in text
  assert text.count("── rejected ──") == 6
  assert text.count("── example ") == 3


def test_the_figure_is_written(made, tmp_path):
  _, lengths = report.make_report(*made)
  counts = collections.Counter(e.user_id for e in made[1].train)
  report.figure(tmp_path / "report.png", lengths, list(counts.values()))
  assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def in_dialogue(*turns):
  """A turn of ann's, and all that was said before it."""
  asked = tuple(
    structs.Message("assistant" if n % 2 else "user", text)
    for n, text in enumerate(turns)
  )
  return structs.PreferenceExample(asked, "sat", ("ran",), "ann")


@pytest.mark.parametrize(
  ("changes", "line"),
  [
    (
      {},
      "trunks: 9 for 10 comparisons, 1 with several (2); 9.1% of positions "
      "saved; not joined: 1 turns whose history has another answer than was "
      "chosen",
    ),
    (
      {"share_trunks": False},
      "trunks: none, as data.share_trunks is off; 2 turns of dialogues are "
      "rows of their own",
    ),
    ({"pack": False}, "trunks: none, as data.pack is off; 2 turns"),
  ],
)
def test_the_report_says_what_dialogues_share(made, changes, line):
  config, found, tokenizer = made
  assert "trunks:" not in report.make_report(*made)[0]
  for name, value in changes.items():
    setattr(config.data, name, value)
  config.train.batch_size = 2
  dialogue = [
    in_dialogue("the cat"),
    in_dialogue("the cat", "sat", "I"),
    in_dialogue("the cat", "ran", "I"),
  ]
  train = [*found.train[:7], *dialogue]
  found = dataclasses.replace(found, train=train)
  assert line in report.make_report(config, found, tokenizer)[0]
