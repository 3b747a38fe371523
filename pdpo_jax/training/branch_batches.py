"""Batches of what each branch of the objective reads.

Who sees the user's text depends on the objective, and whether generic rows are
examples of their own.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.data import parts as parts_lib
from pdpo_jax.training import recipes

Rows = list[structs.TokenizedExample]


def sample_rows(recipe: recipes.Recipe, part: parts_lib.Part) -> Rows:
  """What the policy is trained or evaluated on.

  With `loss.mixing` "batch", every training sample comes twice: as its user's
  and as the generic user's, the latter after all of the former.
  """
  loss, vanilla = recipe.loss, recipe.user.kind == "none"
  rows = part.tokenized
  if vanilla and part.name == parts_lib.TRAIN and not loss.vanilla_sees_text:
    rows = _bare(rows)
  if not _apart(recipe, part):
    return rows
  generic = rows if vanilla or loss.generic_sees_text else _bare(rows)
  generic = [dataclasses.replace(row, user_row=0) for row in generic]
  return [*rows, *generic]


def reference_rows(recipe: recipes.Recipe, rows: Rows) -> Rows:
  """What the reference reads of `sample_rows`."""
  return rows if recipe.loss.reference_sees_text else _bare(rows)


def make_batches(
  recipe: recipes.Recipe,
  part: parts_lib.Part,
  rows: Rows,
  reference_logps: Float[np.ndarray, "samples N"] | None,
  devices: int = 1,
  *,
  trained: bool,
) -> batching.PreferenceBatches:
  """Batches of `sample_rows` or `reference_rows`.

  Args:
    devices: that will split a batch; where they cannot, it is whole on each.
    trained: whether a batch is trained on, in `accumulation_steps` parts. Where
      it is only read, one of such a part's size is enough.
  """
  users = recipe.user.kind != "none"
  batch_size, parts = recipe.train.batch_size, recipe.train.accumulation_steps
  if not trained:
    # More devices than it was trained on get a sample each.
    batch_size = -(-batch_size // parts // devices) * devices
    parts = 1
  return batching.PreferenceBatches(
    rows,
    reference_logps,
    batch_size,
    recipe.seed,
    recipe.user.num_tokens if users else 0,
    max_shapes=recipe.data.max_shapes,
    devices=devices if batch_size % devices == 0 else 1,
    parts=parts,
    pack=recipe.data.pack,
    # For the generic branch, where it is run on the same samples.
    with_bare_prompt=recipe.learns_generic
    and reference_logps is not None
    and not recipe.loss.generic_sees_text
    and not _apart(recipe, part),
  )


def _apart(recipe: recipes.Recipe, part: parts_lib.Part) -> bool:
  """Whether generic rows are samples of their own."""
  return (
    recipe.loss.mixing == "batch"
    and recipe.train.learn == "all"
    and part.name == parts_lib.TRAIN
  )


def _bare(rows: Rows) -> Rows:
  return [dataclasses.replace(row, prompt=row.bare_prompt) for row in rows]
