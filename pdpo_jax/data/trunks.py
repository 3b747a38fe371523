"""Which comparisons are turns of one dialogue, so that they share a trunk.

A turn's prompt repeats all earlier turns and what was chosen there. Where its
tokens are those of an earlier prompt and chosen response, and then some, the
earlier comparison can be read off the later one's prompt. Nothing but the
tokens decides: templates may write earlier turns in another way, prompts may
have lost their beginning, and texts may be tokenized otherwise in the middle.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from pdpo_jax.core import structs
from pdpo_jax.data import dialogues, packing, rectangles

OTHERWISE = "turns whose tokens do not go on from the turn before"
OTHER_ANSWER = "turns whose history has another answer than was chosen"
OTHER_USER = "turns that go on from what another user chose"

Trunk = list[int]  # places of examples, decision by decision


def join(
  examples: Sequence[structs.TokenizedExample],
  most: int,
  with_bare_prompt: bool = False,
) -> list[Trunk]:
  """Each example once, with those whose prompts go on from its own.

  Args:
    examples: in any order.
    most: decisions of a trunk.
    with_bare_prompt: whether the prompts without user text have to go on from
      each other as well.
  """
  following: dict[int, int] = {}
  if most > 1:
    by_user = collections.defaultdict(list)
    for place, example in enumerate(examples):
      by_user[example.user_row].append(place)
    for places in by_user.values():
      if len(places) > 1:
        following |= _following(examples, places, with_bare_prompt)
  continued = set(following.values())
  trunks = []
  for place in range(len(examples)):
    if place not in continued:
      chain = [place]
      while chain[-1] in following:
        chain.append(following[chain[-1]])
      trunks += [
        chain[start : start + most] for start in range(0, len(chain), most)
      ]
  return trunks


def not_joined(
  examples: Sequence[structs.PreferenceExample], trunks: Sequence[Trunk]
) -> collections.Counter[str]:
  """Turns that begin a trunk though the turn before is there, by reason.

  Args:
    examples: those that were joined, as text.
    trunks: of `join`.
  """
  answers, of_all = collections.defaultdict(set), collections.defaultdict(set)
  for example in examples:
    turns, chosen = dialogues.turns_of(example.prompt), example.chosen.strip()
    answers[example.user_id, turns].add(chosen)
    of_all[turns].add(chosen)
  counts: collections.Counter[str] = collections.Counter()
  for trunk in trunks:
    example = examples[trunk[0]]
    *before, answer, _ = (None, *dialogues.turns_of(example.prompt))
    if answer is None:
      continue
    history, said = tuple(before[1:]), answer.content.strip()
    if (example.user_id, history) in answers:
      known = said in answers[example.user_id, history]
      counts[OTHERWISE if known else OTHER_ANSWER] += 1
    elif said in of_all.get(history, ()):
      counts[OTHER_USER] += 1
  return counts


def _following(examples, places, with_bare_prompt):
  """The example that goes on from each, where one does.

  In lexicographic order all texts that begin with another come right behind
  it, so that those which a prompt begins with are on a stack.
  """
  texts = []
  for place in places:
    example = examples[place]
    texts.append((_as_bytes(example.prompt), False, place))
    # Of those alike the first is to be on top.
    texts.append((_as_bytes(_inputs(example, example.prompt)), True, -place))
  following, stack = {}, []
  for text, is_end, place in sorted(texts):
    while stack and not text.startswith(stack[-1][0]):
      stack.pop()
    if is_end:
      stack.append((text, -place))
      continue
    # The longest first; each goes on once.
    for depth in reversed(range(len(stack))):
      end, earlier = stack[depth]
      if len(end) < len(text) and (
        not with_bare_prompt or _goes_on(examples[earlier], examples[place])
      ):
        following[earlier] = place
        del stack[depth]
        break
  return following


def _inputs(example, prompt):
  """What has to stand on the trunk; the last token is only predicted."""
  return np.concatenate([prompt, example.responses[0][:-1]])


def _as_bytes(ids) -> bytes:
  """In the order of their bytes as in that of the ids."""
  return np.asarray(ids, ">u4").tobytes()


def _goes_on(earlier, later):
  """Whether the prompts without user text go on by as many tokens."""
  begins = _inputs(earlier, earlier.bare_prompt)
  longer = len(later.prompt) - len(earlier.prompt)
  return len(later.bare_prompt) - len(
    earlier.bare_prompt
  ) == longer and np.array_equal(later.bare_prompt[: len(begins)], begins)


@dataclasses.dataclass(frozen=True)
class Rows:
  """What each row takes; a row of one example has one decision.

  Attributes:
    prompts: positions of the prompt, which is the trunk.
    behind: positions of the responses behind it, which are run.
    on_trunk: positions of responses on it.
    decisions: comparisons.
    responses: how many are behind it.
    longest: positions of the longest response.
  """

  prompts: Int[np.ndarray, " rows"]
  behind: Int[np.ndarray, " rows"]
  on_trunk: Int[np.ndarray, " rows"]
  decisions: Int[np.ndarray, " rows"]
  responses: Int[np.ndarray, " rows"]
  longest: Int[np.ndarray, " rows"]

  @classmethod
  def of(
    cls,
    examples: Sequence[structs.TokenizedExample],
    rows: Sequence[Trunk],
    with_bare_prompt: bool,
  ) -> "Rows":
    found = []
    for row in rows:
      last = examples[row[-1]]
      lengths = [[*map(len, examples[place].responses)] for place in row]
      on_trunk = sum(each[0] for each in lengths[:-1])
      found.append(
        (
          max(len(last.prompt), with_bare_prompt * len(last.bare_prompt)),
          sum(map(sum, lengths)) - on_trunk,
          on_trunk,
          len(row),
          sum(map(len, lengths)) - len(row) + 1,
          max(map(max, lengths)),
        )
      )
    return cls(*np.array(found).T)

  def sizes(self) -> packing.Sizes:
    return packing.Sizes(
      self.prompts + self.behind,
      self.behind + self.on_trunk,
      self.responses,
      self.decisions,
    )

  def shape(self, rows: Int[np.ndarray, " some"]) -> rectangles.Shape:
    """P, N and R that are enough for some of them."""
    on_trunk = self.decisions[rows].max() - 1
    return (
      int(self.prompts[rows].max()),
      int(on_trunk + self.responses[rows].max()),
      int(self.longest[rows].max()),
    )
