import collections

import pytest

from pdpo_jax import config as config_lib
from pdpo_jax import structs
from pdpo_jax.data import dataset, report, rows, tokenize


def example(user, number, **fields):
  return structs.PreferenceExample(
    f"the cat {number}", " sat", (" ate", " ran"), user, **fields
  )


@pytest.fixture
def made():
  tally = rows.Tally()
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


def test_the_report_counts_samples_users_and_losses(made):
  text, lengths = report.make_report(*made)
  for part in (
    "read: 9 rows; dropped: 1 ties",
    "train: 8 samples; nothing cut",
    "heldout: 1 samples",
    "unseen: 1 samples",
    "users: 2 in training, 1 unseen; 1 samples of unknown users",
    "samples a user: 1 to 6, median 3.5",
    "rejected responses a sample: 8 with 2",
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


@pytest.mark.parametrize(
  ("kind", "place", "start"),
  [
    ("individual", "front", "[10 vectors of user 'ann']I am\n\nthe"),
    ("individual", "after_bos", "I[10 vectors of user 'ann'] am\n\nthe"),
    ("none", "front", "I am\n\nthe"),
  ],
)
def test_samples_show_where_the_prefix_stands(made, kind, place, start):
  config = made[0]
  config.user.kind = kind
  config.user.prefix_position = place
  text, _ = report.make_report(*made)
  assert f"── sample 0 ──\n{start}" in text
  assert "── chosen ──\n sat<|endoftext|>" in text
  assert text.count("── rejected ──") == 6
  assert text.count("── sample ") == 3


def test_the_figure_is_written(made, tmp_path):
  _, lengths = report.make_report(*made)
  counts = collections.Counter(e.user_id for e in made[1].train)
  report.figure(tmp_path / "report.png", lengths, list(counts.values()))
  assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
