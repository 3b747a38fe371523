"""Pairs of answers that somebody may be asked about, made by the model itself.

An answer is written as each of several people whom this person may be: of each
likely group, and as far away in the directions in which least is known of them
as they may well be. Which pair tells most, `people.Learner.outlook` says.
"""

import dataclasses
import itertools
import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import respond, sampling
from pdpo_jax.training import people, policies
from pdpo_jax.training import population as population_lib
from pdpo_jax.weights import base as base_lib

# Standard deviations from where a person most likely is.
_DISTANCE = 2.0
# Groups that are less likely are not spoken for.
_LEAST_SHARE = 0.05

logger = logging.getLogger(__name__)


def plain(text: str) -> str:
  """What is the same of texts that read alike."""
  return " ".join(text.split()).casefold()


def voices(
  person: people.Person, population: population_lib.Population, directions: int
) -> list[Float[np.ndarray, "..."]]:
  """Rows of people whom this person may be.

  Args:
    directions: of each group, how many are gone along, both ways.
  """
  rows = []
  for group in np.flatnonzero(person.groups >= _LEAST_SHARE):
    z = person.z[group]
    rows.append(population.row(int(group), z))
    variances, axes = np.linalg.eigh(person.covariance[group])
    # What matters is how far a row moves, and not z.
    lengths = np.linalg.norm(
      (np.sqrt(variances) * axes).T @ population.directions, axis=1
    )
    for place in np.argsort(-lengths)[:directions]:
      step = _DISTANCE * np.sqrt(variances[place]) * axes[:, place]
      rows += [population.row(int(group), z + s * step) for s in (1, -1)]
  return rows


def make_candidates(
  policy: policies.SplitPolicy,
  base: base_lib.Base,
  person: people.Person,
  population: population_lib.Population,
  prompts: Sequence[structs.PromptExample],
  answers: sampling.AnswersConfig,
  data: data_config.DataConfig,
  *,
  directions: int = 2,
  seed: int = 0,
) -> list[structs.PreferenceExample]:
  """Pairs of different answers to each prompt; nobody has chosen yet.

  Answers that read alike, but for case and space, are one. A prompt whose
  answers all do has no pair. Answers that are read again as more tokens than
  may be learnt from are left out, which a warning says.

  Args:
    policy: of the run.
    directions: as for `voices`.
    seed: of the first prompt; those that follow have the next ones.

  Raises:
    ValueError: if there is no pair since answers were left out.
  """
  rows = voices(person, population, directions)
  longer = policies.with_rows(policy, rows).merge()
  first = longer.user_model.num_rows - len(rows)
  names = {str(number): first + number for number in range(len(rows))}
  # With the token that ends it, an answer is to be as long as may be.
  most = min(answers.max_new_tokens, max(1, data.max_response_tokens - 1))
  answers = dataclasses.replace(
    answers,
    max_new_tokens=most,
    min_new_tokens=min(answers.min_new_tokens, most),
  )
  said = respond.answer(longer, base, prompts, names, answers, data, seed)
  count = len(said) * len(prompts)
  fitting = _fitting(prompts, [*said.values()], base, data)
  left_out = count - sum(map(len, fitting))
  pairs = []
  for prompt, texts in zip(prompts, fitting, strict=True):
    different = {plain(text): text for text in texts}
    pairs += [
      structs.PreferenceExample(
        prompt.prompt, one, (other,), user_text=prompt.user_text
      )
      for one, other in itertools.combinations(different.values(), 2)
    ]
  if left_out:
    reason = (
      f"{left_out:,} of the model's {count:,} answers cannot be learnt from, "
      f"at data.max_response_tokens {data.max_response_tokens}, and are left "
      "out"
    )
    if not pairs:
      raise ValueError(
        f"{reason}, so that no two different ones are left to choose from; "
        "bring other prompts, or pairs of responses (--data)"
      )
    logger.warning("%s", reason)
  return pairs


def _fitting(
  prompts: Sequence[structs.PromptExample],
  said: Sequence[Sequence[str]],
  base: base_lib.Base,
  data: data_config.DataConfig,
) -> list[list[str]]:
  """Of each prompt's answers, those that can be learnt from.

  Args:
    said: by speaker, an answer to each prompt.
  """
  if data.long_response == "error":
    data = dataclasses.replace(data, long_response="drop")
  examples = [
    structs.PreferenceExample(prompt.prompt, text, (), None, prompt.user_text)
    for texts in said
    for prompt, text in zip(prompts, texts, strict=True)
  ]
  split = tokenized.tokenize_split(
    "answers",
    examples,
    data,
    base.tokenizer,
    users_lib.UserIndex([]),
    may_be_none=True,
    alone=True,
  )
  fitting: list[list[str]] = [[] for _ in prompts]
  for place, example in zip(split.kept, split.examples, strict=True):
    fitting[place % len(prompts)].append(example.chosen)
  return fitting
