"""Asks a judge about pairs of responses, and keeps every verdict.

The journal is a file of JSON lines, one a verdict, with the prompts and the
whole answer. It is written the moment an answer comes, and read before anything
is asked: what is in it is never paid for twice.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tqdm

from pdpo_jax import structs
from pdpo_jax.config import judge as judge_config
from pdpo_jax.evaluation import evidence as evidence_lib
from pdpo_jax.evaluation import judge_prompt, judges, winrate

logger = logging.getLogger(__name__)

# Of English text, for the estimate.
_CHARACTERS_A_TOKEN = 4
# Of verdicts: more of them refused is no matter of a few prompts.
_REFUSED_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Question:
  """Which of two responses would a user choose?

  Attributes:
    sample: names the pair; the same pair of responses has one name.
    user_id: whom the judge plays.
    prompt, user_text: what was responded to.
    ours, theirs: the responses.
    evidence: what the judge is told of the user.
    prefers: "shorter" or "longer", where the user is known to; or "".
  """

  sample: str
  user_id: str
  prompt: structs.Prompt
  user_text: str
  ours: str
  theirs: str
  evidence: evidence_lib.Evidence
  prefers: str = ""


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What is still to be asked, and what it costs.

  Attributes:
    calls: verdicts that are asked for, at most. Equal questions are asked once,
      but responses that are yet to be generated are not known to be equal.
    kept: verdicts that the journal has already.
    input_tokens: about, by four characters a token.
    output_tokens: at most.
    dollars: for these, at the configured prices.
  """

  calls: int
  kept: int
  input_tokens: int
  output_tokens: int
  dollars: float

  def __str__(self) -> str:
    return (
      f"{self.calls:,} calls ({self.kept:,} more are in the journal), about "
      f"{self.input_tokens:,} tokens in and at most {self.output_tokens:,} "
      f"out: about ${self.dollars:,.2f} at the prices of --judge.input_price "
      "and --judge.output_price"
    )


@dataclasses.dataclass(frozen=True)
class _Verdict:
  """One question in one order."""

  question: Question
  ours_first: bool
  asked: judges.Asked
  key: str


def judge(
  questions: Sequence[Question],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
) -> list[winrate.Judgement]:
  """A judgement for each question and order.

  A few that the judge refuses for good, as by a content filter, are without a
  verdict, as those that cannot be read.

  Raises:
    ValueError: if the judge cannot be asked, or some verdicts could not be had;
      all others are in the journal then, and the same call goes on from there.
  """
  verdicts = _verdicts(questions, config)
  kept = _read(journal)
  missing = _missing(verdicts, kept)
  if missing:
    failures = _ask(missing, config, journal, kept)
    final = all(isinstance(each, judges.Refused) for each in failures)
    if not final or len(failures) > _REFUSED_SHARE * len(verdicts):
      remedy = "the same command asks for the rest"
      if final:
        remedy = "asking again will not help"
      raise ValueError(
        f"{len(failures)} of {len(missing):,} verdicts could not be had (the "
        f"last: {failures[-1]}); the others are kept in {journal}, and {remedy}"
      )
    if failures:
      logger.warning(
        "%d of %d verdicts are refused and count as unreadable (the last: %s)",
        len(failures),
        len(verdicts),
        failures[-1],
      )
  return [_judgement(each, kept.get(each.key)) for each in verdicts]


def estimate(
  questions: Sequence[Question],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
) -> Estimate:
  """What `judge` would ask now."""
  verdicts = _verdicts(questions, config)
  kept = _read(journal)
  missing = [each.asked.prompts for each in verdicts if each.key not in kept]
  letters = sum(len(each.system) + len(each.user) for each in missing)
  tokens_in = letters // _CHARACTERS_A_TOKEN
  tokens_out = config.max_tokens * len(missing)
  dollars = tokens_in * config.input_price + tokens_out * config.output_price
  return Estimate(
    len(missing),
    len(verdicts) - len(missing),
    tokens_in,
    tokens_out,
    dollars / 1e6,
  )


def _missing(
  verdicts: Sequence[_Verdict], kept: Mapping[str, Any]
) -> list[_Verdict]:
  """What is to be asked, each once: two policies may respond the same."""
  by_key = {each.key: each for each in verdicts}
  return [each for key, each in by_key.items() if key not in kept]


def _verdicts(
  questions: Sequence[Question], config: judge_config.JudgeConfig
) -> list[_Verdict]:
  """Every question in the orders that it is asked in."""
  template = judge_prompt.Template(config)
  found = []
  for question in questions:
    orders = (True, False)
    if config.order == "random":
      digest = hashlib.sha256(question.sample.encode()).digest()
      orders = (bool(digest[0] % 2),)
    for ours_first in orders:
      a, b = question.ours, question.theirs
      if not ours_first:
        a, b = b, a
      prompts = template.render(
        question.prompt, a, b, question.user_text, question.evidence
      )
      asked = judges.Asked(prompts, a, b, question.prefers)
      found.append(
        _Verdict(question, ours_first, asked, _key(asked, question, config))
      )
  return found


def _key(
  asked: judges.Asked, question: Question, config: judge_config.JudgeConfig
) -> str:
  """The same for the same pair, judge and prompts alone."""
  parts = (
    config.kind,
    config.model,
    config.base_url,
    config.temperature,
    config.max_tokens,
    question.sample,
    asked.prefers,
    asked.prompts.system,
    asked.prompts.user,
  )
  text = json.dumps(parts, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def _ask(
  missing: Sequence[_Verdict],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
  kept: dict[str, dict[str, Any]],
) -> list[judges.Failed]:
  """Asks for verdicts, writes each to the journal and to `kept`."""
  judge = judges.make_judge(config)
  failures = []
  journal.parent.mkdir(parents=True, exist_ok=True)
  _mend(journal)
  # A service may send half a character, which is no text but can be escaped.
  with journal.open("a", errors="backslashreplace") as out:
    bar = tqdm.tqdm(
      judge.answers([each.asked for each in missing]),
      desc="judge",
      total=len(missing),
      unit="verdict",
    )
    for place, answer in bar:
      if isinstance(answer, judges.Failed):
        failures.append(answer)
        continue
      line = _line(missing[place], answer, config)
      out.write(json.dumps(line, ensure_ascii=False) + "\n")
      out.flush()
      kept[line["key"]] = line
    os.fsync(out.fileno())
  return failures


def _line(
  verdict: _Verdict, answer: judges.Answer, config: judge_config.JudgeConfig
) -> dict[str, Any]:
  question, prompts = verdict.question, verdict.asked.prompts
  return {
    "key": verdict.key,
    "sample": question.sample,
    "user_id": question.user_id,
    "ours_first": verdict.ours_first,
    "judge": config.kind,
    "model": config.model,
    "verdict": judge_prompt.parse(answer.text),
    "answer": answer.text,
    "input_tokens": answer.input_tokens,
    "output_tokens": answer.output_tokens,
    "seconds": answer.seconds,
    "system": prompts.system,
    "user": prompts.user,
  }


def _read(journal: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The verdicts of a journal by key, without a last line that was cut off.

  Raises:
    ValueError: if another line is broken.
  """
  if not journal.is_file():
    return {}
  whole, _, _ = journal.read_bytes().rpartition(b"\n")
  kept = {}
  for number, line in enumerate(whole.splitlines(), 1):
    try:
      found = json.loads(line)
      kept[found["key"]] = found
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise ValueError(
        f"{journal}:{number} is broken ({error}); take the line out, and what "
        "it said is asked for again"
      ) from error
  return kept


def _mend(journal: pathlib.Path) -> None:
  """Takes out a last line that was cut off."""
  if not journal.is_file():
    return
  whole, newline, rest = journal.read_bytes().rpartition(b"\n")
  if rest:
    logger.warning(
      "%s: the last line was cut off and is asked for again", journal
    )
    with journal.open("r+b") as file:
      file.truncate(len(whole) + len(newline))


def _judgement(
  verdict: _Verdict, line: dict[str, Any] | None
) -> winrate.Judgement:
  winner = {
    None: None,
    "tie": winrate.TIE,
    "a": winrate.OURS if verdict.ours_first else winrate.THEIRS,
    "b": winrate.THEIRS if verdict.ours_first else winrate.OURS,
  }[line and line["verdict"]]
  question = verdict.question
  return winrate.Judgement(
    question.sample, question.user_id, winner, verdict.ours_first
  )
