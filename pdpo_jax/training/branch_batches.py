"""Batches of what each branch of the objective reads.

Who sees the user's text depends on the objective, and whether generic rows are
examples of their own.
"""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float

from pdpo_jax.data import batching, tokenize, tokenized, trunks
from pdpo_jax.training import recipes, reference, sharding
from pdpo_jax.weights import base as base_lib


def example_rows(
  recipe: recipes.Recipe, split: tokenized.TokenizedSplit
) -> tokenized.Rows:
  """What the policy is trained or evaluated on.

  With `loss.mixing` "batch", every training example comes twice: as its user's
  and as the generic user's, the latter after all of the former.
  """
  loss, vanilla = recipe.loss, recipe.user.kind == "none"
  rows = split.tokenized
  if vanilla and split.name == tokenized.TRAIN and not loss.vanilla_sees_text:
    rows = _bare(rows)
  if not _apart(recipe, split):
    return rows
  generic = rows if vanilla or loss.generic_sees_text else _bare(rows)
  generic = [dataclasses.replace(row, user_row=0) for row in generic]
  return [*rows, *generic]


def reference_rows(
  recipe: recipes.Recipe, rows: tokenized.Rows
) -> tokenized.Rows:
  """What the reference reads of `example_rows`."""
  return rows if recipe.loss.reference_sees_text else _bare(rows)


def make_batches(
  recipe: recipes.Recipe,
  split: tokenized.TokenizedSplit,
  rows: tokenized.Rows,
  reference_logps: Float[np.ndarray, "examples N"] | None,
  devices: int = 1,
  *,
  trained: bool,
) -> batching.PreferenceBatches:
  """Batches of `example_rows` or `reference_rows`.

  Args:
    devices: that will split a batch; where they cannot, it is whole on each.
    trained: whether a batch is trained on, in `accumulation_steps`
      microbatches. Where it is only read, one microbatch is enough.
  """
  users = recipe.user.kind != "none"
  batch_size = recipe.train.batch_size
  microbatches = recipe.train.accumulation_steps
  if not trained:
    # More devices than it was trained on get an example each.
    batch_size = -(-batch_size // microbatches // devices) * devices
    microbatches = 1
  return batching.PreferenceBatches(
    rows,
    reference_logps,
    batch_size,
    recipe.seed,
    recipe.user.num_tokens if users else 0,
    max_shapes=recipe.data.max_shapes,
    devices=devices if batch_size % devices == 0 else 1,
    microbatches=microbatches,
    pack=recipe.data.pack,
    share_trunks=not why_separate(recipe),
    # For the generic branch, where it is run on the same examples.
    with_bare_prompt=recipe.learns_generic
    and reference_logps is not None
    and not recipe.loss.generic_sees_text
    and not _apart(recipe, split),
  )


def why_separate(recipe: recipes.Recipe) -> str:
  """The option by which turns of a dialogue are separate rows; "" for none."""
  data, loss = recipe.data, recipe.loss
  if not data.share_trunks:
    return "data.share_trunks is off"
  if not data.pack:
    return "data.pack is off"
  if loss.mixing != "sample":
    return f"loss.mixing is {loss.mixing!r}"
  return ""


def describe_trunks(
  recipe: recipes.Recipe,
  split: tokenized.TokenizedSplit,
  batches: batching.PreferenceBatches,
) -> str:
  """How much of a split's dialogues is shared; "" where there are none.

  Args:
    batches: of the split's `example_rows`.
  """
  reason = why_separate(recipe)
  if reason:
    alone = [[place] for place in range(len(split.examples))]
    counts = trunks.not_joined(split.examples, alone)
    if not counts:
      return ""
    return (
      f"trunks: none, as {reason}; {counts.total():,} turns of dialogues are "
      "rows of their own"
    )
  joined = [trunk for trunk in batches.trunks if len(trunk) > 1]
  counts = trunks.not_joined(split.examples, batches.trunks)
  if not joined and not counts:
    return ""
  saved = 1 - batches.positions / batches.separate_positions
  return (
    f"trunks: {len(batches.trunks):,} for {batches.num_examples:,} comparisons,"
    f" {len(joined):,} with several ({sum(map(len, joined)):,}); "
    f"{saved:.1%} of positions saved; not joined: "
    f"{tokenize.listed(counts) if counts else 'none'}"
  )


def with_reference(
  recipe: recipes.Recipe,
  base: base_lib.Base,
  split: tokenized.TokenizedSplit,
  cache: pathlib.Path,
) -> batching.PreferenceBatches:
  """Batches with reference log-probabilities, as the objective wants them.

  Args:
    base: the reference.
    cache: the folder where log-probabilities are kept for all runs.
  """
  rows = example_rows(recipe, split)
  read = reference_rows(recipe, rows)
  devices = sharding.batch_shards(sharding.mesh_of(base.params))
  logps = reference.reference_logps(
    base,
    read,
    make_batches(recipe, split, read, None, devices, trained=False),
    cache,
    recipe.train.logits_chunk,
    f"reference, {split.name}",
  )
  trained = split.name == tokenized.TRAIN
  return make_batches(recipe, split, rows, logps, devices, trained=trained)


def _apart(recipe: recipes.Recipe, split: tokenized.TokenizedSplit) -> bool:
  """Whether generic rows are examples of their own."""
  return (
    recipe.loss.mixing == "batch"
    and recipe.train.learn == "all"
    and split.name == tokenized.TRAIN
  )


def _bare(rows: tokenized.Rows) -> tokenized.Rows:
  return [dataclasses.replace(row, prompt=row.bare_prompt) for row in rows]
