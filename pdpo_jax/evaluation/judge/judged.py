"""Win rates of trained policies, as a judge who plays the users sees them."""

import collections
import dataclasses
import logging
import pathlib
import random
from collections.abc import Collection, Mapping, Sequence

from pdpo_jax.core import processes, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import comparison
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import evidence, judging, winrate
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import contenders, experiment, run_folder
from pdpo_jax.runs import responses as responses_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

_CHOSEN, _BASE = "chosen response", "the base"

# By policy and opponent, then by whose users: "all users" and parts.
Rates = dict[tuple[str, str], dict[str, winrate.WinRates]]
# Responses by sample key.
Responses = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Samples:
  """What is judged.

  Attributes:
    examples: by sample key.
    parts: the part that each key is of.
  """

  examples: dict[str, structs.PreferenceExample]
  parts: dict[str, str]


def win_rates(
  found: Sequence[contenders.Contender],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  workdir: pathlib.Path,
) -> Rates:
  """Judges every policy that is no control against each opponent.

  Args:
    scores: of the first policy by part; samples are drawn from what it has.
    workdir: gets the journal of verdicts.

  Raises:
    ValueError: if verdicts could not be had; those that could are kept. If the
      first policy is a control.
  """
  _check_own(found[0])
  config = found[0].config
  samples = draw(dataset, scores, judge, config.seed)
  said = {
    name: responses(list(samples.examples.values()))
    for name, responses in _sources(found, base, judge, config).items()
  }
  asked = _questions(found, samples, said, dataset, judge)
  everything = [each for own in asked.values() for each in own]
  # A judge costs money, or runs on a device of its own process.
  judgements = iter(
    processes.from_first(
      lambda: judging.judge(everything, judge, _journal(workdir))
    )
  )
  orders = 2 if judge.order == "both" else 1
  rates: Rates = {}
  for pair, own in asked.items():
    said_of_pair = [next(judgements) for _ in range(orders * len(own))]
    rates[pair] = _by_part(said_of_pair, samples.parts)
  return rates


def estimate(
  found: Sequence[contenders.Contender],
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  workdir: pathlib.Path,
) -> judging.Estimate:
  """What `win_rates` would ask for now, without generating anything.

  A response that is not generated yet counts as long as the chosen one.
  """
  _check_own(found[0])
  config = found[0].config
  samples = draw(dataset, scores, judge, config.seed)
  chosen = {key: each.chosen for key, each in samples.examples.items()}
  said = dict.fromkeys(_opponents(found, judge), chosen)
  if _BASE in said:
    lines = responses_lib.read(_base_file(found[0]))
    kept = {line["sample"]: line["response"] for line in lines}
    said[_BASE] = chosen | kept
  said |= {
    each.name: chosen | each.kept_responses(config)
    for each in found
    if not each.control
  }
  asked = _questions(found, samples, said, dataset, judge)
  everything = [each for own in asked.values() for each in own]
  return judging.estimate(everything, judge, _journal(workdir))


def _check_own(own: contenders.Contender) -> None:
  """Checks that a judge is told what users really chose.

  Raises:
    ValueError: if the run is a control.
  """
  if own.control:
    raise ValueError(
      f"--workdir {str(own.workdir)!r} is a control ({own.control}), whose "
      "choices are not its users' own; give the run that it is a control of, "
      "and this one by --against"
    )


def _opponents(
  found: Sequence[contenders.Contender], judge: judge_config.JudgeConfig
) -> list[str]:
  """The names of what `judge.against` says, where it is there."""
  names = {"chosen": _CHOSEN, "base": _BASE, "run": found[0].name}
  for each in found:
    if each.config.user.kind == "none" and not each.control:
      names.setdefault("vanilla", each.name)
  for each in judge.against:
    if each not in names:
      logger.warning(
        "nothing is judged against %r (--judge.against): no such run is there; "
        "name one by --against",
        each,
      )
  return [names[each] for each in judge.against if each in names]


def _base_file(own: contenders.Contender) -> pathlib.Path:
  """Where the base's responses are, with the settings of a run."""
  return responses_lib.file_of(
    own.workdir, "base", responses_lib.Settings.of(own.config)
  )


def _journal(workdir: pathlib.Path) -> pathlib.Path:
  return workdir / run_folder.JOURNAL


def draw(
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  seed: int,
) -> Samples:
  """Some samples of some users, the same for the same data and seed.

  Raises:
    ValueError: if a user named by `judge.users` has no held-out sample, or
      there is no sample at all.
  """
  rng = random.Random(f"judged {seed}")
  examples, parts = {}, {}
  missing = set(judge.users)
  for part in experiment.EVALUATED:
    if part not in scores:
      continue
    fit, turns = set(scores[part].samples), set()
    by_user = collections.defaultdict(dict)
    for example in getattr(dataset, part):
      key = scores_lib.sample_key(example)
      if example.user_id is None or key not in fit:
        continue
      # One of those that differ in what was rejected, which no judge sees.
      turn = example.user_id, example.prompt, example.chosen
      if turn not in turns:
        turns.add(turn)
        by_user[example.user_id][key] = example
    users = sorted(by_user)
    if judge.users:
      users = [user for user in users if user in judge.users]
    else:
      users = rng.sample(users, min(judge.num_users, len(users)))
    missing -= set(users)
    for user in users:
      own = by_user[user]
      count = min(judge.samples_per_user, len(own))
      for key in rng.sample(sorted(own), count):
        examples[key], parts[key] = own[key], part
  if missing:
    raise ValueError(
      f"judge.users {', '.join(sorted(missing))} have no held-out sample to be "
      "judged on; name users of results.json's reward_accuracy"
    )
  if not examples:
    raise ValueError(
      "there is no held-out sample with a user, so that no judge can play one"
    )
  return Samples(examples, parts)


def _sources(found, base, judge, config):
  """Who responds, by name: functions from samples to responses by key."""
  if config.answers.max_new_tokens == 0:
    raise ValueError(
      "answers.max_new_tokens 0 leaves nothing to judge; train with another"
    )
  sources = {}
  if "chosen" in judge.against:
    sources[_CHOSEN] = lambda examples: {
      scores_lib.sample_key(each): each.chosen for each in examples
    }
  if "base" in judge.against:
    sources[_BASE] = lambda examples: responses_lib.make(
      examples,
      lambda user_id: 0,
      lambda: policy_lib.base_policy(base.lm),
      base,
      config.data,
      responses_lib.Settings.of(config),
      _base_file(found[0]),
    )
  for each in found:
    if not each.control:
      sources[each.name] = lambda examples, each=each: each.responses(
        examples, config
      )
  return sources


def _questions(
  found: Sequence[contenders.Contender],
  samples: Samples,
  said: Mapping[str, Responses],
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig,
) -> dict[tuple[str, str], list[judging.Question]]:
  """What is asked for each policy and opponent that is not itself."""
  told = _evidence(samples, dataset, judge)
  tastes = {user: "shorter" for user in dataset.short_users}
  tastes |= {user: "longer" for user in dataset.long_users}
  asked = {}
  for each in found:
    for opponent in _opponents(found, judge):
      if each.control or each.name == opponent:
        continue
      asked[each.name, opponent] = [
        judging.Question(
          key,
          example.user_id,
          example.prompt,
          example.user_text,
          said[each.name][key],
          said[opponent][key],
          told[key],
          tastes.get(example.user_id, ""),
        )
        for key, example in samples.examples.items()
      ]
  if not asked:
    raise ValueError(
      f"judge.against {judge.against}: none of them is there to compare with; "
      "add another run by --against, or use 'chosen' or 'base'"
    )
  return asked


def _evidence(
  samples: Samples,
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig,
) -> dict[str, evidence.Evidence]:
  """What the judge is told, by sample key."""
  users = {each.user_id for each in samples.examples.values()}
  choices = collections.defaultdict(list)
  for each in [*dataset.train, *dataset.heldout, *dataset.unseen]:
    if each.user_id in users:
      choices[each.user_id].append(each)
  return {
    key: evidence.gather(
      example,
      choices[example.user_id],
      dataset.personas.get(example.user_id, structs.Persona()),
      judge.num_examples,
      judge.later_turns,
    )
    for key, example in samples.examples.items()
  }


def _by_part(
  judgements: Collection[winrate.Judgement], parts: Mapping[str, str]
) -> dict[str, winrate.WinRates]:
  found = {"all users": winrate.win_rates(list(judgements))}
  for part, title in comparison.PARTS.items():
    own = [each for each in judgements if parts[each.sample] == part]
    if own and len(own) < len(judgements):
      found[title] = winrate.win_rates(own)
  return found
