"""Which steps of a training are kept, and where unreadable ones go."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from orbax.checkpoint import v1 as ocp

from pdpo_jax.core import kept


class Newest(ocp.training.preservation_policies.LatestN):
  """The newest `n`, and one besides."""

  preserved: int | None = None

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any):
    newest = super().should_preserve(checkpoints, context=context)
    return [
      new or each.step == self.preserved
      for new, each in zip(newest, checkpoints, strict=True)
    ]


def move_aside(place: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves a step's folder, and keeps what was moved there before."""
  kept.make_folder(folder)
  name = next(
    name
    for number in itertools.count()
    if not (name := folder / f"{place.name}_{number}").exists()
  )
  place.rename(name)
