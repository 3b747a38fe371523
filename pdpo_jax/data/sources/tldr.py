"""TL;DR: summaries of Reddit posts, compared by workers with a taste in length.

Stiennon et al., arXiv:2009.01325; experiment 1 of arXiv:2402.05133. Posts,
summaries and who compared them are real. What a worker prefers is simulated:
some the shorter summary, the others the longer one; `choice` is not read.
"""

import collections
import dataclasses
import pathlib
import random
from collections.abc import Callable, Collection, Iterable, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import records
from pdpo_jax.data.sources import formats

# Of prompt and summary in the released code, which puts this text in front of
# every prompt and counts it.
_AUTHORS_LIMIT = 4800 - len("USER: 1" + 10 * "<|endoftext|>" + "||")

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A post and its two summaries, before anyone prefers one."""

  worker: str
  post_id: str
  prompt: str
  summaries: tuple[str, str]
  policies: tuple[str, str]
  place: str  # file and line

  @property
  def from_sft(self) -> bool:
    """Whether both summaries were written by supervised policies on posts."""
    return all(
      "sup" in policy and "ppo" not in policy and "cnn" not in policy
      for policy in self.policies
    )


def load(
  data: data_config.DataConfig,
  seed: int,
  num_prompts: int,
  count_tokens: CountTokens | None = None,
) -> dataset_lib.Dataset:
  """Comparisons of the busiest workers, as their taste in length has it.

  Workers become users "1", "2", … by how many comparisons they have for
  training, before ties are dropped; equals by name. Prompts are posts of any
  worker's validation records.

  Args:
    count_tokens: tokens of each text, for `data.tldr.length_unit` "tokens".

  Raises:
    ValueError: if files are missing, too many records are broken, there are
      fewer workers than asked for, one has no comparison left, or no post is.
  """
  tldr = data.tldr
  measure = _measure(tldr.length_unit, count_tokens)
  tally = records.Tally()
  train = _read(data.path, "train", tally)
  heldout = _read(data.path, "validation", tally)
  tally.check(data.max_bad_share)
  # Of all records: a post that another worker saw in training is known as well.
  known = {each.post_id for each in train} | {each.prompt for each in train}
  train = _of_sft(train, "train", data, tally)
  heldout = _of_sft(heldout, "validation", data, tally)
  if tldr.selection == "clean":
    heldout = _of_new_posts(heldout, known, tally)
  prompts = _prompts(heldout, data.path, seed, num_prompts, tally)
  users = _busiest_workers(train, tldr.num_workers, tally)
  examples = {}
  for split, comparisons in (("train", train), ("validation", heldout)):
    of_users = [each for each in comparisons if each.worker in users]
    tally.drop(
      f"{split} records of other workers", len(comparisons) - len(of_users)
    )
    examples[split] = _prefer(of_users, users, measure, split, data, tally)
  _check_users(examples["train"], users, tally)
  names = users.values()
  return dataset_lib.Dataset(
    train=examples["train"],
    heldout=examples["validation"],
    prompts=prompts,
    short_users=tuple(each for each in names if each in tldr.short_workers),
    long_users=tuple(each for each in names if each not in tldr.short_workers),
    tally=tally,
  )


def _measure(unit: str, count_tokens: CountTokens | None) -> CountTokens:
  if unit == "words":
    return lambda texts: [len(text.split()) for text in texts]
  if unit == "characters":
    return lambda texts: [len(text) for text in texts]
  if count_tokens is None:
    raise ValueError(
      "data.tldr.length_unit 'tokens' needs a tokenizer, and none was given; "
      "pass count_tokens, or use 'words' or 'characters'"
    )
  return count_tokens


def _read(path: str, split: str, tally: records.Tally) -> list[Comparison]:
  """Comparisons of posts; those of news articles are dropped."""
  folder = pathlib.Path(path).expanduser()
  file = formats.find_jsonl(folder, split)
  if not folder.exists():
    placed = records.read_hub(path, tally, name="comparisons", split=split)
  elif file is not None:
    placed = formats.read(file, tally)
  else:
    raise ValueError(
      f"data.path {path!r} has no {split}.jsonl; give a folder with "
      "train.jsonl and validation.jsonl, or the hub id "
      "openai/summarize_from_feedback"
    )
  comparisons = list(records.parse(placed, _comparison, tally))
  of_posts = [each for each in comparisons if each is not None]
  tally.drop(f"{split} records of articles", len(comparisons) - len(of_posts))
  return of_posts


def _comparison(record: records.Record, place: str) -> Comparison | None:
  """The comparison of a post; None if it is of an article."""
  info = records.field(record, "info", dict)
  post = records.optional(info, "post", str)
  if post is None:
    records.field(info, "article", str)
    return None
  summaries = records.field(record, "summaries", list)
  if len(summaries) != 2:
    raise records.BrokenRecord("not two summaries", str(len(summaries)))
  for summary in summaries:
    if not isinstance(summary, dict):
      raise records.BrokenRecord("wrong type", f"summary {summary!r:.60}")
  worker = records.field(record, "worker", str)
  if not worker:
    raise records.BrokenRecord("empty id", "worker")
  subreddit = records.field(info, "subreddit", str)
  title = records.field(info, "title", str)
  first, second = summaries
  return Comparison(
    worker=worker,
    post_id=records.field(info, "id", str),
    prompt=f"SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:",
    summaries=(
      records.field(first, "text", str),
      records.field(second, "text", str),
    ),
    policies=(
      records.field(first, "policy", str),
      records.field(second, "policy", str),
    ),
    place=place,
  )


def _of_sft(
  comparisons: list[Comparison],
  split: str,
  data: data_config.DataConfig,
  tally: records.Tally,
) -> list[Comparison]:
  if not data.tldr.sft_only:
    return comparisons
  kept = [each for each in comparisons if each.from_sft]
  tally.drop(f"{split} records of other policies", len(comparisons) - len(kept))
  return kept


def _of_new_posts(
  comparisons: list[Comparison], known: Collection[str], tally: records.Tally
) -> list[Comparison]:
  kept = [
    comparison
    for comparison in comparisons
    if comparison.post_id not in known and comparison.prompt not in known
  ]
  reason = "validation records of posts that training has"
  tally.drop(reason, len(comparisons) - len(kept))
  return kept


def _prompts(
  comparisons: Iterable[Comparison],
  path: str,
  seed: int,
  wanted: int,
  tally: records.Tally,
) -> list[structs.PromptExample]:
  posts = list(dict.fromkeys(each.prompt for each in comparisons))
  if not posts:
    raise ValueError(
      f"{path} leaves no validation post to be summarised. What "
      f"was read: {tally}"
    )
  if len(posts) < wanted:
    tally.note("prompts fewer than answers.num_prompts", wanted - len(posts))
  rng = random.Random(f"prompts {seed}")
  drawn = rng.sample(posts, min(wanted, len(posts)))
  return [structs.PromptExample(post) for post in drawn]


def _busiest_workers(
  comparisons: Iterable[Comparison], count: int, tally: records.Tally
) -> dict[str, str]:
  """User "1", "2", … by worker, busiest first."""
  counts = collections.Counter(each.worker for each in comparisons)
  if len(counts) < count:
    raise ValueError(
      f"data.tldr.num_workers {count}: only {len(counts)} workers have "
      f"comparisons for training; use at most so many. What was read: {tally}"
    )
  workers = sorted(counts, key=lambda worker: (-counts[worker], worker))
  return {
    worker: str(number)
    for number, worker in enumerate(workers[:count], start=1)
  }


def _prefer(
  comparisons: Sequence[Comparison],
  users: dict[str, str],
  measure: CountTokens,
  split: str,
  data: data_config.DataConfig,
  tally: records.Tally,
) -> list[structs.PreferenceExample]:
  """Each worker's shorter or longer summary is the chosen one."""
  tldr = data.tldr
  summaries = [text for each in comparisons for text in each.summaries]
  lengths = iter(measure(summaries))
  examples = []
  for comparison in comparisons:
    pair, sizes = comparison.summaries, (next(lengths), next(lengths))
    user = users[comparison.worker]
    prompt = comparison.prompt + " " * tldr.trailing_space
    if tldr.selection == "clean":
      if not all(text.strip() for text in pair):
        tally.drop(f"{split} records with an empty summary")
        continue
    elif len(prompt) + max(map(len, pair)) > _AUTHORS_LIMIT:
      tally.drop(f"{split} records over {_AUTHORS_LIMIT:,} characters")
      continue
    if pair[0] == pair[1]:
      tally.drop(f"{split} records of twice the same summary")
      continue
    if sizes[0] == sizes[1] and tldr.ties == "drop":
      tally.drop(f"{split} records of equal length in {tldr.length_unit}")
      continue
    second_is_longer = sizes[0] < sizes[1]
    # Of a tie, the first is the chosen one, whatever the user's taste.
    second_is_chosen = sizes[0] != sizes[1] and (
      second_is_longer != (user in tldr.short_workers)
    )
    chosen, rejected = pair[::-1] if second_is_chosen else pair
    examples.append(
      structs.PreferenceExample(
        prompt, chosen, (rejected,), user, place=comparison.place
      )
    )
  return examples


def _check_users(
  train: Iterable[structs.PreferenceExample],
  users: dict[str, str],
  tally: records.Tally,
) -> None:
  present = {each.user_id for each in train}
  for worker, user in users.items():
    if user not in present:
      raise ValueError(
        f"worker {worker!r} (user {user!r}) has no comparison left for "
        "training; use a smaller data.tldr.num_workers, or data.tldr.ties "
        f"'first'. What was read: {tally}"
      )
