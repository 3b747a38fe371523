"""One's own comparisons: files, folders of files, or a hub data set.

A record has `prompt`, `chosen` and `rejected`, each a text or a list of
messages (`{"role": …, "content": …}`), and may have `user_id` and `user_text`.
Several rejected responses are a list. Without `prompt`, `chosen` and `rejected`
are whole dialogues, and the prompt is what they begin with alike. In place of
`chosen` and `rejected`, a record may have a `ranking` of responses, or one
`response` with a `label`, a thumb up or down. Where names tell the splits, one
is trained on and another held out (`locations.py`).

A ranking is a choice of its best response, then of the best of the rest, and so
on (Plackett and Luce; arXiv:2305.18290, appendix A.3), each of which is a
comparison with one or several rejected responses.
"""

import logging

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset, records, splits
from pdpo_jax.data.sources import (
  locations,
  preference_records,
  thumbs,
  turns,
  user_ids,
)

logger = logging.getLogger(__name__)

Examples = list[structs.PreferenceExample]
Feedback = list[structs.Feedback]


def load(
  data: data_config.DataConfig, seed: int, num_prompts: int
) -> dataset.Dataset:
  """Reads and splits the comparisons that `data.path` and `data.files` name."""
  files = data.files
  tally = records.Tally()
  train, heldout = _read_both(data.path, files, tally)
  tally.check(data.max_bad_share)
  train = thumbs.as_comparisons(train, tally)
  if heldout is not None:
    heldout = thumbs.as_comparisons(heldout, tally)
  user_ids.note_alike(
    (example.user_id for example in (*train, *(heldout or ()))), tally
  )
  splits.note_repeated(train, tally)
  if tally.noted[turns.STAY_TEXT] > tally.records / 2:
    logger.warning(
      "data.path %r: %s %s, in %s records. Where they should be responses or "
      "messages, write them as lists",
      data.path,
      f"{tally.noted[turns.STAY_TEXT]:,}",
      turns.STAY_TEXT,
      f"{tally.records:,}",
    )
  if heldout is None:
    train, _ = splits.without_rare_users(train, [], files, tally)
    train, heldout = splits.split(train, files.heldout_share, seed)
  else:
    heldout = splits.without_common(train, heldout, tally)
    train, heldout = splits.without_rare_users(train, heldout, files, tally)
  strangers = splits.draw_users(train, files.unseen_users, seed)
  tally.drop(
    "training comparisons of unseen users",
    sum(example.user_id in strangers for example in train),
  )
  train = [example for example in train if example.user_id not in strangers]
  limit = "max_per_user", files.max_per_user
  train = splits.at_most(train, *limit, seed, tally)
  limit = "max_heldout_per_user", files.max_heldout_per_user
  heldout = splits.at_most(heldout, *limit, seed, tally)
  seen = {example.user_id for example in train} | {None}
  known = [example for example in heldout if example.user_id in seen]
  for name, examples in (("training", train), ("held-out", known)):
    if not examples:
      raise ValueError(
        f"data.path {data.path!r}: no {name} comparison of a seen user is "
        f"left ({tally}); bring more choices, or look at data.files "
        "(heldout_share, heldout_path, min_per_user) and data.max_bad_share. "
        "Thumbs on single responses teach who somebody is to a run that is "
        "trained already: python -m pdpo_jax.users learn"
      )
  splits.note_known(train, heldout, tally)
  tally.note(
    "comparisons without a user, who count as unknown",
    sum(example.user_id is None for example in (*train, *heldout)),
  )
  return dataset.Dataset(
    train=train,
    heldout=known,
    unseen=[example for example in heldout if example.user_id not in seen],
    prompts=splits.draw_prompts(known, num_prompts, seed),
    tally=tally,
  )


def read(
  path: str,
  user_column: str,
  tally: records.Tally,
  prompt_column: str = "prompt",
) -> Feedback:
  """The comparisons and thumbs at a path, of the split to train on.

  Args:
    path: a file, a folder, or the id of a hub data set. A split of the latter
      two may be named behind a colon.
    user_column: where user ids are.
    tally: is told what is broken, dropped or not read.
    prompt_column: where prompts are.

  Raises:
    ValueError: if nothing can be read, a column is missing, or user ids are of
      mixed type.
  """
  location = _find(path, "--data")
  columns = user_column, prompt_column
  return _read(location, location.training_split(), columns, tally)


def _read_both(
  path: str, files: data_config.FilesConfig, tally: records.Tally
) -> tuple[Feedback, Feedback | None]:
  """What to train on and hold out; None where the former is to be split."""
  location = _find(path, "data.path")
  training = location.training_split()
  heldout_split = None
  columns = files.user_column, files.prompt_column
  train = _read(location, training, columns, tally)
  if files.heldout_path:
    other = _find(files.heldout_path, "data.files.heldout_path")
    split = other.heldout_split() or other.training_split()
    heldout = _read(other, split, columns, tally)
  elif (heldout_split := location.heldout_split()) is not None:
    heldout = _read(location, heldout_split, columns, tally)
    tally.note(
      f"held out, as the split {heldout_split!r} of data.path", len(heldout)
    )
  else:
    heldout = None
  for split in location.splits:
    if split not in (training, heldout_split):
      for name in location.names(split):
        reason = f"split {split!r} is neither trained on nor held out"
        tally.leave_out(name, reason)
  return train, heldout


def _find(path: str, option: str) -> locations.Location:
  try:
    return locations.find(path)
  except ValueError as error:
    raise ValueError(f"{option}: {error}") from error


def _read(
  location: locations.Location,
  split: str,
  columns: tuple[str, str],
  tally: records.Tally,
) -> Feedback:
  """What a split says; `columns` are those of users and prompts."""
  reader = preference_records.Reader(*columns, tally)
  wanted = {*preference_records.COLUMNS, *columns}
  feedback = [
    each
    for place, record in location.records(split, tally, wanted)
    for each in reader.read(place, record)
  ]
  return user_ids.without_points(feedback, tally)
