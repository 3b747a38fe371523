"""What the base makes of held-out choices without any training.

As it is, and prompted with what is known of a person: their own text and
choices that they made before, as many as fit. Whoever trains must beat that.
"""

import collections
import dataclasses
import pathlib
import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import tokenize, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import responses as responses_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import branch_batches, reference, sharding
from pdpo_jax.weights import base as base_lib

BASE, PROMPTED = "the base", "the base, prompted"
# More tokens of past choices cost more than they tell.
_MOST_TOKENS = 1024
# Choices in a row that do not fit before no more are tried.
_MOST_MISSES = 3
_INTRODUCTION = "What this person chose before:"


def scores(
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  config: config_lib.Config,
  known: Mapping[str, scores_lib.Scores],
) -> dict[str, dict[str, scores_lib.Scores]]:
  """Scores by contender and split.

  A pair's is how much more likely a token the chosen response is than the
  rejected one, in nats: a sum over tokens would favour what is short.

  Args:
    config: of the run; limits and sizes of batches are its own.
    known: scores of the run's policy by split; the same examples are scored.
  """
  choices = _by_user(dataset.train, config.seed)
  longer = _with_room(base, config)
  found: dict[str, dict[str, scores_lib.Scores]] = {BASE: {}, PROMPTED: {}}
  for split, of_split in known.items():
    wanted = set(of_split.examples)
    examples = [
      example
      for example in getattr(dataset, split)
      if scores_lib.example_key(example) in wanted
    ]
    as_is = _score(base, examples, config, bare=True)
    prompted = _score(base, prompt(examples, choices, base, longer), longer)
    # With all that, a pair may no longer fit; it is a tie, which is not right.
    ratios = np.where(np.isnan(as_is), np.nan, np.nan_to_num(prompted, nan=0.0))
    found[BASE][split] = scores_lib.make(examples, as_is)
    found[PROMPTED][split] = scores_lib.make(examples, ratios)
  return found


def tell(
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  config: config_lib.Config,
  examples: Sequence[structs.PreferenceExample],
) -> list[structs.PreferenceExample]:
  """Examples as the base is prompted with them."""
  choices = _by_user(dataset.train, config.seed)
  return prompt(examples, choices, base, _with_room(base, config))


def count_told(example: structs.PreferenceExample) -> int:
  """How many past choices an example of `tell` tells of."""
  _, told, choices = example.user_text.partition(_INTRODUCTION)
  return choices.count("\n\nAsked: ") if told else 0


def respond(
  base: base_lib.Base,
  config: config_lib.Config,
  workdir: pathlib.Path,
  told: Sequence[structs.PreferenceExample],
  seeds: Sequence[int],
) -> list[str | None]:
  """What the base, prompted, says to the prompts of examples.

  Kept in the run folder, and generated only once.

  Args:
    config: of the run; limits and `answers` are its own.
    workdir: the run folder.
    told: from `tell`.
    seeds: one an example.

  Returns:
    Responses in the order of the examples; None where a prompt does not fit.
  """
  longer = _with_room(base, config)
  settings = responses_lib.Settings.of(longer)
  encoder = prompts_lib.make_encoder(base.tokenizer, longer.data)
  encoded = encoder.encode(
    [structs.PromptExample(each.prompt, each.user_text) for each in told],
    collections.Counter(),
  )
  most = base.lm.arch.max_positions - config.answers.max_new_tokens
  places = [
    place
    for place, ids in enumerate(encoded)
    if ids is not None and len(ids) <= most
  ]
  responses = responses_lib.make(
    [told[place] for place in places],
    lambda user_id: 0,
    lambda: policy_lib.base_policy(base.lm),
    base,
    longer.data,
    settings,
    responses_lib.file_of(workdir, "base_prompted", settings),
    seeds=[seeds[place] for place in places],
  )
  return [responses.get(scores_lib.example_key(each)) for each in told]


def prompt(
  examples: Sequence[structs.PreferenceExample],
  choices: Mapping[str | None, Sequence[structs.PreferenceExample]],
  base: base_lib.Base,
  config: config_lib.Config,
) -> list[structs.PreferenceExample]:
  """Examples whose user's text also tells of choices that the user made.

  A user's text has half of a prompt's tokens (`data/prompts.py`); choices are
  added as long as it fits.

  Args:
    choices: by user, the first to be told first.
  """
  half = config.data.max_prompt_tokens // 2
  texts = {}
  for example in examples:
    key = example.user_id, example.user_text
    if key not in texts:
      texts[key] = _tell(*key, choices, base, half)
  return [
    dataclasses.replace(
      example, user_text=texts[example.user_id, example.user_text]
    )
    for example in examples
  ]


def _tell(
  user_id: str | None,
  own_text: str,
  choices: Mapping[str | None, Sequence[structs.PreferenceExample]],
  base: base_lib.Base,
  limit: int,
) -> str:
  """A user's own text, and as many of their choices as fit behind it."""
  text = f"{own_text}\n\n{_INTRODUCTION}".lstrip()
  told, misses = own_text, 0
  for example in choices.get(user_id, ()) if user_id is not None else ():
    longer = f"{text}\n\n{_described(example)}"
    (size,) = tokenize.count_tokens(base.tokenizer, [longer])
    # The rest is for what the tokenizer puts between the pieces.
    if size <= 0.95 * limit:
      text = told = longer
    elif (misses := misses + 1) == _MOST_MISSES:
      break
  return told


def _described(example: structs.PreferenceExample) -> str:
  asked = example.prompt
  if not isinstance(asked, str):
    asked = "\n".join(f"{turn.role}: {turn.content}" for turn in asked)
  rejected = "\n".join(f"Rejected: {text.strip()}" for text in example.rejected)
  return f"Asked: {asked.strip()}\nChosen: {example.chosen.strip()}\n{rejected}"


def _by_user(
  train: Iterable[structs.PreferenceExample], seed: int
) -> dict[str | None, list[structs.PreferenceExample]]:
  """Each user's choices, in an order drawn by the seed."""
  by_user = collections.defaultdict(list)
  for example in train:
    by_user[example.user_id].append(example)
  for user_id, of_user in by_user.items():
    random.Random(f"told {user_id} {seed}").shuffle(of_user)
  return by_user


def _with_room(
  base: base_lib.Base, config: config_lib.Config
) -> config_lib.Config:
  """The config with prompts long enough for past choices."""
  data = dataclasses.replace(
    config.data, max_prompt_tokens=_room(base, config), truncation="turns"
  )
  if data.long_response == "error":
    data = dataclasses.replace(data, long_response="drop")
  return dataclasses.replace(config, data=data)


def _room(base: base_lib.Base, config: config_lib.Config) -> int:
  """Tokens of a prompt with past choices in it.

  The base's positions are the limit, and no prompt gets less than in training.
  """
  own = config.data.max_prompt_tokens
  behind = max(config.data.max_response_tokens, config.answers.max_new_tokens)
  positions = base.lm.arch.max_positions - behind
  return max(own, min(positions, own + 2 * _MOST_TOKENS))


def _score(
  base: base_lib.Base,
  examples: Sequence[structs.PreferenceExample],
  config: config_lib.Config,
  bare: bool = False,
) -> Float[np.ndarray, "examples M"]:
  """Differences of log-likelihoods a token; NaN where a pair does not fit.

  Args:
    bare: as the reference reads prompts, which has then been computed.
  """
  recipe = config.recipe
  split = tokenized.tokenize_split(
    tokenized.EVALUATED[0],
    examples,
    config.data,
    base.tokenizer,
    users_lib.UserIndex([]),
  )
  devices = sharding.batch_shards(sharding.mesh_of(base.params))
  rows = split.tokenized
  if bare:
    rows = branch_batches.reference_rows(recipe, rows)
  logps = reference.reference_logps(
    base,
    rows,
    branch_batches.make_batches(
      recipe, split, rows, None, devices, trained=False
    ),
    config.cache_folder,
    recipe.train.logits_chunk,
    "the base",
  )
  # What is there twice has the same score twice.
  places = collections.defaultdict(list)
  for place, example in enumerate(examples):
    places[scores_lib.example_key(example)].append(place)
  most = max(len(example.rejected) for example in examples)
  ratios = np.full((len(examples), most), np.nan, np.float32)
  for example, row, sums in zip(split.examples, rows, logps, strict=True):
    lengths = np.array([len(ids) for ids in row.responses])
    per_token = sums[: lengths.size] / lengths
    same = places[scores_lib.example_key(example)]
    ratios[same, : lengths.size - 1] = per_token[0] - per_token[1:]
  return ratios
