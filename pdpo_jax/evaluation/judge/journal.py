"""Asks a judge about pairs of responses, and keeps every verdict.

The journal is a file of JSON lines, one a verdict, with the prompts and the
whole answer. It is written the moment an answer comes, and read before anything
is asked, by one process at a time: what is in it is never paid for twice.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import tqdm

# Pydantic refuses that of `typing` before Python 3.12.
from typing_extensions import TypedDict

from pdpo_jax.core import kept
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import judges, prompt, questions

logger = logging.getLogger(__name__)

# Who wins.
OURS, THEIRS, TIE = "ours", "theirs", "tie"
# A part of a character in UTF-16.
_HALF = re.compile("[\ud800-\udfff]")
# Of English text, for the estimate.
_CHARACTERS_A_TOKEN = 4
# Of verdicts: more of them refused is no matter of a few prompts.
_REFUSED_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a judge, playing the user, said of two responses to one prompt.

  Attributes:
    example: the key of what was responded to.
    user_id: whom the judge played.
    winner: `OURS`, `THEIRS` or `TIE`; None where the answer was unreadable.
    ours_first: whether our response was shown as (a).
  """

  example: str
  user_id: str
  winner: str | None
  ours_first: bool


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


class _Line(TypedDict):
  """Of the journal: a verdict, and what led to it."""

  key: str
  sample: str  # the example's key
  user_id: str
  ours_first: bool
  judge: str
  model: str
  verdict: Literal["a", "b", "tie"] | None
  answer: str
  input_tokens: int
  output_tokens: int
  seconds: float
  system: str
  user: str


@dataclasses.dataclass(frozen=True)
class _Verdict:
  """One question in one order."""

  question: questions.Question
  ours_first: bool
  asked: judges.Asked
  key: str


def judge(
  wanted: Sequence[questions.Question],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
) -> list[Judgement]:
  """A judgement for each question and order.

  A few that the judge refuses for good, as by a content filter, are without a
  verdict, as those that cannot be read.

  Raises:
    ValueError: if the judge cannot be asked, or some verdicts could not be had;
      all others are in the journal then, and the same call goes on from there.
  """
  verdicts = _verdicts(wanted, config)
  lines = _read(journal)
  if _missing(verdicts, lines):
    with _alone(journal):
      # Another process may have asked for some by now.
      lines = _read(journal)
      missing = _missing(verdicts, lines)
      failures = _ask(missing, config, journal, lines) if missing else []
    _check(failures, len(missing), len(verdicts), journal)
  return [_judgement(verdict, lines.get(verdict.key)) for verdict in verdicts]


def _check(
  failures: Sequence[judges.Failed],
  asked: int,
  needed: int,
  journal: pathlib.Path,
) -> None:
  """Checks that few verdicts are missing, and for good.

  Raises:
    ValueError: if that is not so.
  """
  if not failures:
    return
  final = all(isinstance(failure, judges.Refused) for failure in failures)
  if not final or len(failures) > _REFUSED_SHARE * needed:
    remedy = "the same command asks for the rest"
    if final:
      remedy = "asking again will not help"
    raise ValueError(
      f"{len(failures)} of {asked:,} verdicts could not be had (the last: "
      f"{failures[-1]}); the others are kept in {journal}, and {remedy}"
    )
  logger.warning(
    "%d of %d verdicts are refused and count as unreadable (the last: %s)",
    len(failures),
    needed,
    failures[-1],
  )


def estimate(
  wanted: Sequence[questions.Question],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
) -> Estimate:
  """What `judge` would ask now."""
  verdicts = _verdicts(wanted, config)
  lines = _read(journal)
  missing = [
    verdict.asked.prompts for verdict in verdicts if verdict.key not in lines
  ]
  letters = sum(len(prompts.system) + len(prompts.user) for prompts in missing)
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
  verdicts: Sequence[_Verdict], lines: Mapping[str, _Line]
) -> list[_Verdict]:
  """What is to be asked, each once: two policies may respond the same."""
  by_key = {verdict.key: verdict for verdict in verdicts}
  return [verdict for key, verdict in by_key.items() if key not in lines]


def _verdicts(
  wanted: Sequence[questions.Question], config: judge_config.JudgeConfig
) -> list[_Verdict]:
  """Every question in the orders that it is asked in."""
  template = prompt.Template(config)
  verdicts = []
  for question in wanted:
    orders = (True, False)
    if config.order == "random":
      digest = hashlib.sha256(question.example.encode()).digest()
      orders = (bool(digest[0] % 2),)
    for ours_first in orders:
      a, b = question.ours, question.theirs
      if not ours_first:
        a, b = b, a
      prompts = template.render(
        question.prompt, a, b, question.user_text, question.evidence
      )
      asked = judges.Asked(prompts, a, b, question.prefers)
      verdicts.append(
        _Verdict(question, ours_first, asked, _key(asked, question, config))
      )
  return verdicts


def _key(
  asked: judges.Asked,
  question: questions.Question,
  config: judge_config.JudgeConfig,
) -> str:
  """The same for the same pair, judge and prompts alone.

  A changed password is no other judge.
  """
  parts = (
    config.kind,
    config.model,
    judge_config.public_address(config.base_url),
    config.temperature,
    config.max_tokens,
    question.example,
    asked.prefers,
    asked.prompts.system,
    asked.prompts.user,
  )
  text = json.dumps(parts, ensure_ascii=False)
  # Half a character is no text, and may be in data all the same.
  data = text.encode(errors="surrogatepass")
  return hashlib.sha256(data).hexdigest()[:24]


@contextlib.contextmanager
def _alone(journal: pathlib.Path) -> Iterator[None]:
  """Waits until no other process asks for verdicts of this journal.

  The lock is the system's: it goes with a process that is killed. It lies on
  the journal itself, which is there then, and can be written.

  Raises:
    kept.Unwritable: if it cannot: before anything is paid for.
  """
  kept.append(journal, [])
  with journal.open("rb") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logger.warning(
        "another process asks for verdicts of %s; this one goes on with them "
        "once it is done",
        journal,
      )
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # Not every shared file system can.
      logger.warning(
        "%s cannot be locked (%s): of several processes that ask at a time, "
        "each pays for itself",
        journal,
        error.strerror,
      )
    yield


def _ask(
  missing: Sequence[_Verdict],
  config: judge_config.JudgeConfig,
  journal: pathlib.Path,
  lines: dict[str, _Line],
) -> list[judges.Failed]:
  """Asks for verdicts, writes each to the journal and to `lines`."""
  judge = judges.make_judge(config)
  failures = []
  bar = tqdm.tqdm(
    judge.answers([verdict.asked for verdict in missing]),
    desc="judge",
    total=len(missing),
    unit="verdict",
  )
  for place, answer in bar:
    if isinstance(answer, judges.Failed):
      failures.append(answer)
      continue
    line = _line(missing[place], answer, config)
    kept.append(journal, [line])
    lines[line["key"]] = line
  return failures


def _line(
  verdict: _Verdict, answer: judges.Answer, config: judge_config.JudgeConfig
) -> _Line:
  question, prompts = verdict.question, verdict.asked.prompts
  line = {
    "key": verdict.key,
    "sample": question.example,
    "user_id": question.user_id,
    "ours_first": verdict.ours_first,
    "judge": config.kind,
    "model": config.model,
    "verdict": prompt.parse(answer.text),
    "answer": answer.text,
    "input_tokens": answer.input_tokens,
    "output_tokens": answer.output_tokens,
    "seconds": answer.seconds,
    "system": prompts.system,
    "user": prompts.user,
  }
  # A service may send half a character, which no file of text can hold.
  return {
    name: _HALF.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, str)
    else value
    for name, value in line.items()
  }


def _read(journal: pathlib.Path) -> dict[str, _Line]:
  """The verdicts of a journal by key, without a last line that was cut off.

  Raises:
    ValueError: if another line is damaged.
  """
  lines, problems = kept.read_journal(journal, _Line)
  if problems:
    raise ValueError(
      f"{problems[0]}; it is the first of {len(problems)} damaged lines, "
      f"beside {len(lines)} whole ones. Put the file back from a copy, or take "
      "those lines out: what they said is asked for again"
    )
  return {line["key"]: line for line in lines}


def _judgement(verdict: _Verdict, line: _Line | None) -> Judgement:
  winner = {
    None: None,
    "tie": TIE,
    "a": OURS if verdict.ours_first else THEIRS,
    "b": THEIRS if verdict.ours_first else OURS,
  }[line and line["verdict"]]
  question = verdict.question
  return Judgement(
    question.example, question.user_id, winner, verdict.ours_first
  )
