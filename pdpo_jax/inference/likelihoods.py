"""How likely the base, or a policy, finds answers to prompts."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.training import policies, scoring, sharding
from pdpo_jax.weights import base as base_lib

# Answers to a prompt that are scored in one pass.
_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Likelihoods:
  """Of a speaker's answers, given their prompts.

  Attributes:
    sums: log-likelihood of each answer with its end token, in nats; NaN where
      the base's template refuses it.
    tokens: of each answer, its end token included.
  """

  sums: Float[np.ndarray, " prompts"]
  tokens: Int[np.ndarray, " prompts"]

  @classmethod
  def joined(cls, several: Iterable["Likelihoods"]) -> "Likelihoods":
    """Of the answers of several speakers, one after the other."""
    several = [*several]
    return cls(
      np.concatenate([each.sums for each in several]),
      np.concatenate([each.tokens for each in several]),
    )

  def first(self, count: int) -> "Likelihoods":
    """Of the first so many answers."""
    return Likelihoods(self.sums[:count], self.tokens[:count])

  @property
  def per_token(self) -> Float[np.ndarray, " prompts"]:
    return self.sums / np.maximum(self.tokens, 1)

  @property
  def mean(self) -> float:
    """Per token, over all answers; NaN where there are none."""
    known = ~np.isnan(self.sums)
    tokens = self.tokens[known].sum()
    return float(self.sums[known].sum() / tokens) if tokens else float("nan")


class Said(NamedTuple):
  """Answers to prompts, and whom a policy reads them as.

  Attributes:
    row: user row; 0 is the generic user's.
    texts: in the order of the prompts.
  """

  row: int
  texts: Sequence[str]


def under_base(
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  answers: Mapping[str, Sequence[str]],
  data: data_config.DataConfig,
  logits_chunk: int = 0,
  max_new_tokens: int = 0,
) -> dict[str, Likelihoods]:
  """As `under`, of the base itself, by speaker."""
  said = {speaker: Said(0, texts) for speaker, texts in answers.items()}
  policy = scoring.of_base(base)
  return under(policy, base, prompts, said, data, logits_chunk, max_new_tokens)


def under(
  policy: policies.SplitPolicy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  answers: Mapping[Any, Said],
  data: data_config.DataConfig,
  logits_chunk: int = 0,
  max_new_tokens: int = 0,
) -> dict[Any, Likelihoods]:
  """Log-likelihoods of answers under a policy, by their names.

  Args:
    base: of the policy.
    prompts: that were answered; each is run once for all answers that are read
      as the same user.
    data: how prompts are written.
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    max_new_tokens: limit of an answer; calls with the same one mostly share
      what was compiled.
  """
  encoder = prompts_lib.make_encoder(base.tokenizer, data)
  counts: collections.Counter[str] = collections.Counter()
  encoded = encoder.encode_prompts(prompts, counts)
  places = [p for p, prompt in enumerate(encoded) if prompt.ids is not None]
  said = [*answers.values()]
  by_prompt = encoder.encode_responses(
    [encoded[place] for place in places],
    [[each.texts[place] for each in said] for place in places],
    counts,
  )
  sums = np.full((len(said), len(prompts)), np.nan)
  tokens = np.zeros(sums.shape, np.int64)
  # Of each example to be scored: the place of its prompt, and its answers.
  examples, scored = [], []
  user_rows = dict.fromkeys(each.row for each in said)
  for (place, responses), user_row in itertools.product(
    zip(places, by_prompt, strict=True), user_rows
  ):
    prompt = encoded[place].ids
    known = [
      number
      for number, ids in enumerate(responses)
      if ids is not None and said[number].row == user_row
    ]
    for start in range(0, len(known), _TOGETHER):
      numbers = known[start : start + _TOGETHER]
      ids = tuple(responses[number] for number in numbers)
      examples.append(structs.TokenizedExample(user_row, prompt, prompt, ids))
      scored.append((numbers, place))
      tokens[numbers, place] = [*map(len, ids)]
  if examples:
    batches = _batches(examples, base, max_new_tokens)
    for batch, logps in scoring.score_batches(policy, batches, logits_chunk):
      for row, index in enumerate(batch.index):
        if index >= 0:
          numbers, place = scored[int(index)]
          sums[numbers, place] = logps[row, : len(numbers)]
  return {
    name: Likelihoods(sums[number], tokens[number])
    for number, name in enumerate(answers)
  }


def _batches(
  examples: Sequence[structs.TokenizedExample],
  base: base_lib.Base,
  max_new_tokens: int,
) -> Iterator[structs.PreferenceBatch]:
  """All of one shape."""
  longest = max(len(ids) for each in examples for ids in each.responses)
  shape = (
    batching.padded_length(max(len(each.prompt) for each in examples)),
    _TOGETHER,
    batching.padded_length(max(longest, max_new_tokens + 1)),
  )
  rows = sharding.batch_shards(sharding.mesh_of(base.params))
  for start in range(0, len(examples), rows):
    places = range(start, start + rows)
    yield batching.make_batch(
      examples,
      None,
      [[place] if place < len(examples) else [] for place in places],
      shape,
    )
