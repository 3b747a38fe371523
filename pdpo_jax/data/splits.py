"""Who is trained on what: held-out comparisons, unseen users, limits.

All draws depend on the seed and the data alone.
"""

import collections
import random
from collections.abc import Iterable

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import records

Examples = list[structs.PreferenceExample]


def split(
  examples: Examples, share: float, seed: int
) -> tuple[Examples, Examples]:
  """Train and held-out split; the latter is a share, and one at least.

  Comparisons of the same responses to a prompt stay on one side.
  """
  groups = collections.defaultdict(list)
  for place, content in enumerate(_contents(examples)):
    groups[content].append(place)
  members = list(groups.values())
  random.Random(f"held out {seed}").shuffle(members)
  wanted = round(share * len(examples))
  if share and len(members) > 1:
    wanted = max(wanted, 1)
  heldout: set[int] = set()
  for places in members:
    if len(heldout) >= wanted:
      break
    heldout.update(places)
  return (
    [each for place, each in enumerate(examples) if place not in heldout],
    [each for place, each in enumerate(examples) if place in heldout],
  )


def _contents(examples: Examples) -> list[tuple[structs.Prompt, frozenset]]:
  """What each example compares; a ranking's comparisons are all of the same."""
  responses = collections.defaultdict(set)
  records_of = [(x.place or str(n), x.prompt) for n, x in enumerate(examples)]
  for record, example in zip(records_of, examples, strict=True):
    responses[record] |= {example.chosen, *example.rejected}
  return [(record[1], frozenset(responses[record])) for record in records_of]


def note_repeated(examples: Examples, tally: records.Tally) -> None:
  """Counts what somebody is said to have chosen twice, as of a copied file."""
  distinct = {
    (each.user_id, each.prompt, each.chosen, each.rejected) for each in examples
  }
  tally.note(
    "comparisons that repeat one of the same user",
    len(examples) - len(distinct),
  )


def note_known(
  train: Examples, heldout: Examples, tally: records.Tally
) -> None:
  """Counts held-out choices that training tells in part.

  Where a user prefers one response to several others, each in a record of its
  own, some records may be held out and others not, and training has seen what
  the user chose.
  """
  known = {(each.user_id, each.prompt, each.chosen) for each in train}
  tally.note(
    "held-out choices of a response that its user also chose in training",
    sum((each.user_id, each.prompt, each.chosen) in known for each in heldout),
  )


def without_common(
  train: Examples, heldout: Examples, tally: records.Tally
) -> Examples:
  """Held-out comparisons of what nobody compares in training."""
  trained = set(_contents(train))
  kept = [
    example
    for example, content in zip(heldout, _contents(heldout), strict=True)
    if content not in trained
  ]
  tally.drop(
    "held-out comparisons that training has too", len(heldout) - len(kept)
  )
  return kept


def _counts(
  examples: Iterable[structs.PreferenceExample],
) -> collections.Counter[str]:
  counts = collections.Counter(example.user_id for example in examples)
  del counts[None]
  return counts


def without_rare_users(
  train: Examples,
  heldout: Examples,
  files: data_config.FilesConfig,
  tally: records.Tally,
) -> tuple[Examples, Examples]:
  """Both splits with the busiest users of the first alone.

  Comparisons without a user stay, and those of users whom only the second
  split knows.
  """
  counts = _counts(train)
  # Users of whom there are held-out comparisons alone are unseen ones.
  kept = {None} | (_counts(heldout).keys() - counts.keys())
  busiest = sorted(counts, key=lambda user: (-counts[user], user))
  frequent = [user for user in busiest if counts[user] >= files.min_per_user]
  kept |= set(frequent[: files.max_users or None])
  left = []
  for of_split in (train, heldout):
    left.append([each for each in of_split if each.user_id in kept])
    rare = len(of_split) - len(left[-1])
    tally.drop("comparisons of users with too few", rare)
  return left[0], left[1]


def draw_users(train: Examples, share: float, seed: int) -> set[str]:
  """A share of the users."""
  users = sorted(_counts(train))
  count = round(share * len(users))
  return set(random.Random(f"unseen {seed}").sample(users, count))


def at_most(
  examples: Examples, name: str, limit: int, seed: int, tally: records.Tally
) -> Examples:
  """At most so many comparisons of each user; 0 is no limit.

  Args:
    name: of the limit, under which the others are counted.
  """
  if not limit:
    return examples
  places = collections.defaultdict(list)
  for place, example in enumerate(examples):
    places[example.user_id].append(place)
  rng = random.Random(f"at most {seed}")
  kept = set(places.pop(None, []))
  for of_user in places.values():
    kept |= set(
      of_user if len(of_user) <= limit else rng.sample(of_user, limit)
    )
  tally.drop(f"comparisons beyond {name}", len(examples) - len(kept))
  return [examples[place] for place in sorted(kept)]


def draw_prompts(
  examples: Examples, count: int, seed: int
) -> list[structs.PromptExample]:
  """Different prompts, each with its author's text."""
  prompts = {
    example.prompt: structs.PromptExample(example.prompt, example.user_text)
    for example in examples
  }
  chosen = list(prompts.values())
  random.Random(f"prompts {seed}").shuffle(chosen)
  return chosen[:count]
