"""Dialogues in whose turns people chose, as in PRISM and Community Alignment.

Each turn is a comparison, whose prompt is all that was said before, with the
chosen responses as the assistant's turns.
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import records

# How surveys write that there is no answer.
_NO_ANSWER = ("", "empty string", "prefer not to say")


@dataclasses.dataclass(frozen=True)
class Turn:
  """An utterance after all that was said before, and the responses to it."""

  number: int
  prompt: tuple[structs.Message, ...]
  chosen: str
  rejected: tuple[str, ...]  # one or more, all different
  feedback: str  # what the user said of the choice; may be empty


@dataclasses.dataclass(frozen=True)
class Dialogue:
  dialogue_id: str
  user_id: str
  turns: tuple[Turn, ...]  # those that are comparisons; may be empty
  place: str  # file and line


@dataclasses.dataclass
class SpokenTurn:
  """What was said in a turn, as it stands in the file."""

  asked: list[str] = dataclasses.field(default_factory=list)
  chosen: list[str] = dataclasses.field(default_factory=list)
  rejected: list[str] = dataclasses.field(default_factory=list)
  feedback: str = ""


def comparisons(
  spoken: Sequence[SpokenTurn], tally: records.Tally
) -> Iterator[Turn]:
  """The turns that are comparisons, each after the history before it.

  A turn without one utterance or a chosen response leaves a gap in the history,
  and so ends the dialogue. One that only lacks a rejected response does not.
  """
  history: list[structs.Message] = []
  for number, turn in enumerate(spoken):
    chosen = [text for text in turn.chosen if not _is_missing(text)]
    if len(turn.asked) != 1 or _is_missing(turn.asked[0]):
      gap = "turns without one utterance"
    elif not chosen:
      gap = "turns without a chosen response"
    else:
      gap = ""
    if gap:
      tally.drop(gap)
      tally.drop("turns after a gap", len(spoken) - number - 1)
      return
    # After the first turn of PRISM, several chosen responses are the same text.
    if len(chosen) > 1:
      tally.note("turns with several chosen responses")
    history.append(structs.Message("user", turn.asked[0]))
    rejected = _different(turn.rejected, chosen, tally)
    if rejected:
      yield Turn(number, tuple(history), chosen[0], rejected, turn.feedback)
    else:
      tally.drop("turns without a rejected response")
    history.append(structs.Message("assistant", chosen[0]))


def _different(
  rejected: Sequence[str], chosen: Sequence[str], tally: records.Tally
) -> tuple[str, ...]:
  """Rejected responses that differ, and not only in the space around them."""
  taken = {text.strip() for text in chosen}
  kept: dict[str, str] = {}
  for text in rejected:
    if _is_missing(text):
      tally.drop("rejected responses without text")
    elif text.strip() in taken:
      tally.drop("rejected responses equal to the chosen one")
    elif text.strip() in kept:
      tally.drop("rejected responses equal to another")
    else:
      kept[text.strip()] = text
  return tuple(kept.values())


def _is_missing(text: str) -> bool:
  return text.strip() in ("", "EMPTY STRING")


def share(count: int, share: float) -> int:
  """The share of a count, rounded up.

  For a share of 0.1 this is `count - int(count * 0.9)`, as in the released
  code. 9 decimals keep 0.07 * 100 = 7.000000000000001 from becoming 8.
  """
  return math.ceil(round(count * share, 9))


def example(
  dialogue: Dialogue, turn: Turn, user_text: str
) -> structs.PreferenceExample:
  """The comparison of a turn, with all its rejected responses."""
  return structs.PreferenceExample(
    prompt=turn.prompt,
    chosen=turn.chosen,
    rejected=turn.rejected,
    user_id=dialogue.user_id,
    user_text=user_text,
    dialogue_id=dialogue.dialogue_id,
    feedback=turn.feedback,
    place=dialogue.place,
  )


def make_dataset(
  splits: Mapping[str, list[structs.PreferenceExample]],
  personas: Mapping[str, structs.Persona],
  tally: records.Tally,
  *,
  path: str,
  options: Collection[str],
  seed: int,
  num_prompts: int,
) -> dataset_lib.Dataset:
  """The data set of three splits, with prompts to be answered.

  Args:
    path: where it was read, for messages.
    options: what can be changed if too little is left.

  Raises:
    ValueError: if no example is left for training or to be answered.
  """
  answered = splits["heldout"] or splits["unseen"]
  if not splits["train"] or not answered:
    raise ValueError(
      f"{path} leaves {len(splits['train'])} examples for training "
      f"and {len(answered)} to be answered; use more dialogues, or change "
      f"{' and '.join(options)}. What was read: {tally}"
    )
  prompts = _prompts(answered, seed, num_prompts, tally)
  return dataset_lib.Dataset(
    **splits, prompts=prompts, personas=personas, tally=tally
  )


def _prompts(
  examples: Sequence[structs.PreferenceExample],
  seed: int,
  wanted: int,
  tally: records.Tally,
) -> list[structs.PromptExample]:
  """Different prompts, one of each user before a second one of any."""
  rng = random.Random(f"prompts {seed}")
  by_user: dict[str | None, dict[structs.PromptExample, None]] = {}
  for each in examples:
    prompt = structs.PromptExample(each.prompt, each.user_text)
    by_user.setdefault(each.user_id, {})[prompt] = None
  shuffled = [rng.sample(list(each), len(each)) for each in by_user.values()]
  rng.shuffle(shuffled)
  rounds = itertools.zip_longest(*shuffled)
  prompts = [each for round_ in rounds for each in round_ if each is not None]
  if len(prompts) < wanted:
    tally.note("prompts fewer than answers.num_prompts", wanted - len(prompts))
  return prompts[:wanted]


def introduction(facts: Mapping[str, str]) -> str:
  """Facts as a user tells them: "About me. Age: 18-34. Country: Kenya."."""
  told = " ".join(
    f"{label}: {fact.rstrip('.')}." for label, fact in facts.items()
  )
  return f"About me. {told}" if told else ""


def no_answer(text: str) -> bool:
  return text.strip().casefold() in _NO_ANSWER


def answer(record: records.Record, path: str) -> str:
  """The text at a dotted path, on one line; "" where there is none.

  Raises:
    records.BrokenRecord: if what is there is no text.
  """
  *parents, name = path.split(".")
  for parent in parents:
    record = records.optional(record, parent, dict) or {}
  text = records.optional(record, name, str) or ""
  return "" if no_answer(text) else " ".join(text.split())
