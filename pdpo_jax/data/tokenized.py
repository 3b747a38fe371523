"""A data set as token ids, split by split."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import prompts, tokenize
from pdpo_jax.data import users as users_lib

TRAIN = "train"
# Splits that are never trained on.
EVALUATED = ("heldout", "unseen")

Rows = list[structs.TokenizedExample]


@dataclasses.dataclass(frozen=True)
class TokenizedSplit:
  """Comparisons of one purpose.

  Attributes:
    name: "train", "heldout" or "unseen".
    examples: those that fit.
    tokenized: the same as token ids.
    counts: what was cut and dropped, by reason.
    kept: the place of each among the examples that were given.
  """

  name: str
  examples: list[structs.PreferenceExample]
  tokenized: Rows
  counts: collections.Counter[str]
  kept: Sequence[int] = ()

  @property
  def owners(self) -> list[str | None]:
    return [example.user_id for example in self.examples]

  def __str__(self) -> str:
    counts = tokenize.listed(self.counts)
    return f"{self.name}: {len(self.examples):,} examples; {counts}"


@dataclasses.dataclass(frozen=True)
class TokenizedDataset:
  """What a run is trained and evaluated on.

  Attributes:
    users: rows of the user table.
    splits: by name; empty ones are left out.
  """

  users: users_lib.UserIndex
  splits: Mapping[str, TokenizedSplit]

  @property
  def longest(self) -> int:
    """Tokens of the longest prompt and response, without a prefix."""
    return max(
      max(len(example.prompt), len(example.bare_prompt))
      + max(map(len, example.responses))
      for split in self.splits.values()
      for example in split.tokenized
    )

  def with_users(self, users: users_lib.UserIndex) -> "TokenizedDataset":
    """The same examples, with the rows of another table of users.

    Whoever has no row there is the generic user.
    """
    if users.rows == self.users.rows:
      return self

    def renumber(example):
      row = example.user_row
      user_id = self.users.rows[row - 1] if row else None
      return dataclasses.replace(
        example, user_row=users.row_or_generic(user_id)
      )

    splits = {
      name: dataclasses.replace(
        split, tokenized=[*map(renumber, split.tokenized)]
      )
      for name, split in self.splits.items()
    }
    return TokenizedDataset(users, splits)


def tokenize_split(
  name: str,
  examples: Sequence[structs.PreferenceExample],
  data: data_config.DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  users: users_lib.UserIndex,
  *,
  may_be_none: bool = False,
  alone: bool = False,
) -> TokenizedSplit:
  """Token ids of one split; users that have no row are read as the generic.

  Args:
    may_be_none: whether it is no error that no comparison is left.
    alone: whether chosen responses may be compared to none.
  """
  result = tokenize.tokenize_examples(
    examples,
    prompts.make_encoder(tokenizer, data),
    users,
    data.max_response_tokens,
    data.long_response,
    data.max_bad_share,
    data.max_prompt_tokens if data.truncation == "keep_start" else None,
    may_be_none=may_be_none,
    alone=alone,
  )
  kept = [examples[place] for place in result.kept]
  return TokenizedSplit(name, kept, result.examples, result.counts, result.kept)


def tokenize_dataset(
  dataset: dataset_lib.Dataset,
  data: data_config.DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  users: users_lib.UserIndex,
  names: Iterable[str] = (TRAIN, *EVALUATED),
) -> TokenizedDataset:
  """Those of the named splits that have examples.

  Args:
    users: of the policy.
  """
  splits = {
    name: tokenize_split(name, getattr(dataset, name), data, tokenizer, users)
    for name in names
    if getattr(dataset, name)
  }
  return TokenizedDataset(users, splits)
