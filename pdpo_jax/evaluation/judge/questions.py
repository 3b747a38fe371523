"""The questions of a run: whose choices a judge is asked about, and what."""

import collections
import dataclasses
import itertools
import logging
import random
from collections.abc import Mapping, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import tokenized
from pdpo_jax.evaluation import untrained
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import evidence
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import responses as responses_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.runs import trained
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

_CHOSEN = "chosen response"

# By the key of what they respond to.
Responses = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Question:
  """Which of two responses would a user choose?

  Attributes:
    example: the key of what was responded to.
    user_id: whom the judge plays.
    prompt, user_text: what was responded to.
    ours, theirs: the responses.
    evidence: what the judge is told of the user.
    prefers: "shorter" or "longer", where the user is known to; or "".
  """

  example: str
  user_id: str
  prompt: structs.Prompt
  user_text: str
  ours: str
  theirs: str
  evidence: evidence.Evidence
  prefers: str = ""


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What is judged.

  Attributes:
    examples: by key.
    splits: the split that each key is of.
  """

  examples: dict[str, structs.PreferenceExample]
  splits: dict[str, str]


def of_run(
  policies: Sequence[trained.Trained],
  base: base_lib.Base | None,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
) -> tuple[Drawn, dict[tuple[str, str], list[Question]]]:
  """What is asked, by the names of a policy and its opponent.

  Args:
    policies: of which the first is the run's own.
    base: None to generate no responses; one that is not there yet is as long as
      the chosen one.
    scores: of the first policy by split.

  Raises:
    ValueError: if the first policy is a control, whose judge would be told what
      users did not choose; or if there is nobody to ask about.
  """
  first = policies[0]
  if first.control:
    raise ValueError(
      f"--workdir {str(first.workdir)!r} is a control ({first.control}), whose "
      "choices are not its users' own; give the run that it is a control of, "
      "and this one by --against"
    )
  drawn = draw(dataset, scores, judge, first.config.seed)
  pairs = _pairs(policies, judge)
  responses = _responses(policies, drawn, base, dataset, judge)
  evidence_of = _evidence(drawn, dataset, judge)
  tastes = {user: "shorter" for user in dataset.short_users}
  tastes |= {user: "longer" for user in dataset.long_users}
  return drawn, {
    (name, opponent): [
      Question(
        key,
        example.user_id,
        example.prompt,
        example.user_text,
        responses[name][key],
        responses[opponent][key],
        evidence_of[key],
        tastes.get(example.user_id, ""),
      )
      for key, example in drawn.examples.items()
    ]
    for name, opponent in pairs
  }


def draw(
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  seed: int,
) -> Drawn:
  """Some examples of some users, the same for the same data and seed.

  Args:
    scores: by split; examples are drawn from what they have.

  Raises:
    ValueError: if a user named by `judge.users` has no held-out example, or
      there is no example at all.
  """
  rng = random.Random(f"judged {seed}")
  examples, splits = {}, {}
  missing = set(judge.users)
  for split in tokenized.EVALUATED:
    if split not in scores:
      continue
    by_user = _by_user(getattr(dataset, split), scores[split])
    users = sorted(by_user)
    if judge.users:
      users = [user for user in users if user in judge.users]
    else:
      users = rng.sample(users, min(judge.num_users, len(users)))
    missing -= set(users)
    for user in users:
      of_user = by_user[user]
      count = min(judge.samples_per_user, len(of_user))
      for key in rng.sample(sorted(of_user), count):
        examples[key], splits[key] = of_user[key], split
  if missing:
    raise ValueError(
      f"judge.users {', '.join(sorted(missing))} have no held-out example to "
      "be judged on; name users of results.json's reward_accuracy"
    )
  if not examples:
    raise ValueError(
      "there is no held-out example with a user, so that no judge can play one"
    )
  return Drawn(examples, splits)


def _by_user(
  examples: Sequence[structs.PreferenceExample], scores: scores_lib.Scores
) -> dict[str, dict[str, structs.PreferenceExample]]:
  """Those that a judge can be asked about, by user and key."""
  scored, turns = set(scores.examples), set()
  by_user = collections.defaultdict(dict)
  for example in examples:
    key = scores_lib.example_key(example)
    if example.user_id is None or key not in scored:
      continue
    # One of those that differ in what was rejected, which no judge sees.
    turn = example.user_id, example.prompt, example.chosen
    if turn not in turns:
      turns.add(turn)
      by_user[example.user_id][key] = example
  return by_user


def _pairs(
  policies: Sequence[trained.Trained], judge: judge_config.JudgeConfig
) -> list[tuple[str, str]]:
  """The names of who is compared: no control, and nobody with itself."""
  names = [policy.name for policy in policies if not policy.control]
  pairs = [
    (name, opponent)
    for name, opponent in itertools.product(names, _opponents(policies, judge))
    if name != opponent
  ]
  if not pairs:
    raise ValueError(
      f"judge.against {judge.against}: none of them is there to compare with; "
      "add another run by --against, or use 'chosen' or 'base'"
    )
  return pairs


def _opponents(
  policies: Sequence[trained.Trained], judge: judge_config.JudgeConfig
) -> list[str]:
  """The names of what `judge.against` says, where it is there."""
  names = {"chosen": _CHOSEN, "run": policies[0].name}
  names |= {"base": untrained.BASE, "prompted": untrained.PROMPTED}
  for policy in policies:
    if policy.config.user.kind == "none" and not policy.control:
      names.setdefault("vanilla", policy.name)
  for name in judge.against:
    if name not in names:
      logger.warning(
        "nothing is judged against %r (--judge.against): no such run is there; "
        "name one by --against",
        name,
      )
  return [names[name] for name in judge.against if name in names]


def _responses(
  policies: Sequence[trained.Trained],
  drawn: Drawn,
  base: base_lib.Base | None,
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig,
) -> dict[str, Responses]:
  """What policies and opponents respond: kept, or generated now and kept."""
  config = policies[0].config
  if base and config.answers.max_new_tokens == 0:
    raise ValueError(
      "answers.max_new_tokens 0 leaves nothing to judge; train with another"
    )
  examples = list(drawn.examples.values())
  chosen = {key: example.chosen for key, example in drawn.examples.items()}
  responses: dict[str, Responses] = {_CHOSEN: chosen}
  settings = responses_lib.Settings.of(config)
  base_file = responses_lib.file_of(policies[0].workdir, "base", settings)
  if base and "base" in judge.against:
    responses[untrained.BASE] = responses_lib.make(
      examples,
      lambda user_id: 0,
      lambda: policy_lib.base_policy(base.lm),
      base,
      config.data,
      settings,
      base_file,
    )
  elif "base" in judge.against:
    lines = responses_lib.read(base_file)
    kept = {line["sample"]: line["response"] for line in lines}
    responses[untrained.BASE] = chosen | kept
  if base and "prompted" in judge.against:
    prompted = untrained.respond(
      base,
      config,
      policies[0].workdir,
      untrained.tell(base, dataset, config, examples),
      [responses_lib.seed_of(key, config.seed) for key in drawn.examples],
    )
    if None in prompted:
      raise ValueError(
        "--judge.against=prompted: some prompts do not fit into the positions "
        "that the base has, with anything that users chose before them; do "
        "without, or lower answers.max_new_tokens"
      )
    responses[untrained.PROMPTED] = dict(
      zip(drawn.examples, prompted, strict=True)
    )
  elif "prompted" in judge.against:
    responses[untrained.PROMPTED] = chosen
  for policy in policies:
    if base and not policy.control:
      responses[policy.name] = policy.responses(examples, config)
    elif not policy.control:
      responses[policy.name] = chosen | policy.kept_responses(config)
  return responses


def _evidence(
  drawn: Drawn,
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig,
) -> dict[str, evidence.Evidence]:
  """What the judge is told, by the example's key."""
  users = {example.user_id for example in drawn.examples.values()}
  choices = collections.defaultdict(list)
  for example in [*dataset.train, *dataset.heldout, *dataset.unseen]:
    if example.user_id in users:
      choices[example.user_id].append(example)
  return {
    key: evidence.gather(
      example,
      choices[example.user_id],
      dataset.personas.get(example.user_id, structs.Persona()),
      judge.num_examples,
      judge.later_turns,
    )
    for key, example in drawn.examples.items()
  }
