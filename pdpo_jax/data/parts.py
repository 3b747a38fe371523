"""The splits of a data set (train, held out, unseen users) as token ids."""

import collections
import dataclasses
from collections.abc import Sequence

import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts, tokenize
from pdpo_jax.data import users as users_lib

TRAIN = "train"

Rows = list[structs.TokenizedExample]


@dataclasses.dataclass(frozen=True)
class Part:
  """Comparisons of one purpose.

  Attributes:
    name: "train", "heldout" or "unseen".
    examples: those that fit.
    tokenized: the same as token ids.
    counts: what was cut and dropped, by reason.
  """

  name: str
  examples: list[structs.PreferenceExample]
  tokenized: Rows
  counts: collections.Counter[str]

  @property
  def owners(self) -> list[str | None]:
    return [example.user_id for example in self.examples]

  def __str__(self) -> str:
    counts = tokenize.listed(self.counts)
    return f"{self.name}: {len(self.examples):,} samples; {counts}"


def tokenize_part(
  name: str,
  examples: Sequence[structs.PreferenceExample],
  data: data_config.DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  users: users_lib.UserIndex,
) -> Part:
  """Token ids of one part; users that have no row are read as the generic."""
  known = [
    example
    if example.user_id in users
    else dataclasses.replace(example, user_id=None)
    for example in examples
  ]
  result = tokenize.tokenize_examples(
    known,
    prompts.make_encoder(tokenizer, data),
    users,
    data.max_response_tokens,
    data.long_response,
    data.max_bad_share,
    data.max_prompt_tokens if data.truncation == "keep_start" else None,
  )
  kept = [examples[place] for place in result.kept]
  return Part(name, kept, result.examples, result.counts)
