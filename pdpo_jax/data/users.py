"""Which row of the user table belongs to which user."""

import collections
import difflib
import itertools
import re
from collections.abc import Iterable
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib

# Near ids are looked for among so many, so that an error stays quick.
_SEARCHED = 100_000


def _natural_key(user_id: str) -> tuple:
  """Sorts 'user2' before 'user10'."""
  pieces = re.split("([0-9]+)", user_id)  # text, digits, text, ...
  # By length and then by digits is by value, however long a number is.
  numbers = [digits.lstrip("0") for digits in pieces[1::2]]
  pieces[1::2] = [(len(digits), digits) for digits in numbers]
  return (pieces, user_id)


class UserIndex:
  """The map from user ids to rows of the user table, for one run.

  Row 0 is the generic user, who has no id (None); rows 1, 2, ... belong to
  `ids`, in the given order.

  Args:
    ids: of users who are trained on, in the order of their rows; a row that
      nobody trains would say nothing of its user. None is a row of nobody's,
      which is never read: of somebody who was erased.
    spare: more rows of nobody's, behind theirs.

  Attributes:
    rows: ids in the order of rows 1, 2, ..., and None for those of nobody.
    ids: those that are somebody's.

  Raises:
    ValueError: if an id is empty or given twice.
  """

  def __init__(self, ids: Iterable[str | None], spare: int = 0):
    self.rows = (*ids, *[None] * spare)
    self._rows: dict[str, int] = {}
    for row, user_id in enumerate(self.rows, start=1):
      if user_id is None:
        continue
      if not isinstance(user_id, str) or not user_id:
        raise ValueError(
          f"user id {user_id!r} (row {row}) must be a string that is not "
          "empty; an unknown user has the id None and needs no row"
        )
      first = self._rows.setdefault(user_id, row)
      if first != row:
        raise ValueError(
          f"user id {user_id!r} is given twice, for rows {first} and {row}; "
          "give each user one row"
        )
    self.ids = tuple(self._rows)

  @classmethod
  def from_examples(
    cls, examples: Iterable[structs.PreferenceExample]
  ) -> "UserIndex":
    """Users of `examples`, sorted naturally, whatever the examples' order."""
    ids = {example.user_id for example in examples} - {None}
    return cls(sorted(ids, key=_natural_key))

  @classmethod
  def of_dataset(
    cls,
    dataset: dataset_lib.Dataset,
    data: data_config.DataConfig,
    trained: Iterable[structs.PreferenceExample] | None = None,
  ) -> "UserIndex":
    """The users who get a row in the table: those who are trained on.

    Everyone else is the generic user, in training and in evaluation.

    Args:
      trained: what is left of `dataset.train`, if that is known.
    """
    users = cls.from_examples(dataset.train if trained is None else trained)
    if not data.unseen_in_table:
      return users
    unseen = {example.user_id for example in dataset.unseen}
    return cls(users.ids, len(unseen - {None, *users.ids}))

  def busiest(
    self, train: Iterable[structs.PreferenceExample], count: int
  ) -> list[str]:
    """The users with the most training examples, in the order of their rows."""
    counts = collections.Counter(example.user_id for example in train)
    chosen = set(sorted(self.ids, key=lambda user_id: -counts[user_id])[:count])
    return [user_id for user_id in self.ids if user_id in chosen]

  def extended(self, other: "UserIndex") -> "UserIndex":
    """These users, and after them those of `other` who are not among them.

    Rows of nobody's stay where somebody's come after them.
    """
    new = [user_id for user_id in other.ids if user_id not in self]
    return UserIndex(
      [*self.rows[: self.last_row], *new], len(other.rows) - other.last_row
    )

  def without(self, user_id: str) -> "UserIndex":
    """The same, with the user's row nobody's; all others keep theirs."""
    return UserIndex(None if each == user_id else each for each in self.rows)

  @property
  def last_row(self) -> int:
    """The last row that is somebody's; 0 without users."""
    return max(self._rows.values(), default=0)

  @property
  def num_rows(self) -> int:
    """The generic user, users, and rows of nobody's."""
    return 1 + len(self.rows)

  def __contains__(self, user_id: str | None) -> bool:
    return user_id in self._rows

  def row_or_generic(self, user_id: str | None) -> int:
    """The user's row, or the generic one of whoever is unknown."""
    return self._rows.get(user_id, 0)

  def row_of(self, user_id: str | None) -> int:
    """The user's row, or the generic one of nobody in particular (None).

    Raises:
      ValueError: if the user is unknown, naming ids that are near.
    """
    if user_id is None:
      return 0
    row = self._rows.get(user_id)
    if row is None:
      near = self.near(str(user_id))
      hint = f"; near: {', '.join(map(repr, near))}" if near else ""
      raise ValueError(
        f"user id {user_id!r} is none of this run's {len(self.ids):,} users"
        f"{hint}. Leave the user away to get the generic answer"
      )
    return row

  def near(self, user_id: str) -> list[str]:
    """Ids that somebody may have meant by this one."""
    return difflib.get_close_matches(
      user_id, itertools.islice(self.ids, _SEARCHED)
    )

  def to_json(self) -> list[str | None]:
    """The ids in row order, and null for each row of nobody's."""
    return [*self.rows]

  @classmethod
  def from_json(cls, ids: Any) -> "UserIndex":
    if not isinstance(ids, list):
      raise ValueError(
        f"user index must be a list of ids in row order, not {ids!r:.60}"
      )
    return cls(ids)
