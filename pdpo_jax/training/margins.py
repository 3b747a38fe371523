"""Margins of pairs for people whose rows are not in the user table.

A person is a sum of a few rows, `row = coordinates @ basis`. A margin is beta
times the log-ratio difference of a pair, as the loss has it; and what is learnt
from is its gradient with respect to its own person's coordinates.

Of a thumb's response y, the surplus of a row over the generic user takes the
place of the log-ratio: what it gives y, less what it may be expected to give
whatever the generic user says,

    s(y) = sum_t log pi(y_t | row) - log pi(y_t | generic)
                 + KL(pi(. | generic) || pi(. | row)),

all behind x and y_<t. With h_t what the output head W reads, normalizers cancel
and `s(y) = sum_t (h_t(row) - h_t(generic)) (W[y_t] - E_generic W[v])`, where
the second factor is the gradient that `logprobs.py` makes.

Axes: B pairs · K coordinates.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.core import processes, structs
from pdpo_jax.data import batching
from pdpo_jax.training import (
  branch_batches,
  host_users,
  losses,
  policies,
  recipes,
  scoring,
  sharding,
)
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.weights import base as base_lib

Examples = Sequence[structs.TokenizedExample]
# A batch of so few rows may take a shape that there is a program for already,
# with up to so many times its tokens: to compile another takes longer.
_FEW_ROWS, _MOST_TIMES = 8, 4


@functools.cache
def _compiled(
  graphdef: Any,
  beta: float,
  length_normalized: bool,
  logits_chunk: int,
  of_thumbs: bool,
) -> Callable:
  def run(trainable, frozen, batch, coordinates, basis):
    policy = nnx.merge(graphdef, trainable, frozen)
    logps_of = functools.partial(
      objective_lib.logps_of_hidden, policy, batch, logits_chunk=logits_chunk
    )

    def hidden_of(coordinates):
      rows = jnp.tensordot(coordinates, basis, 1)
      return objective_lib.response_hidden(
        policy, batch, policy.user_model.prefixes(rows)
      )

    if of_thumbs:
      generic = hidden_of(jnp.zeros_like(coordinates).at[:, -1].set(1.0))
      logps, pull_back = jax.vjp(logps_of, generic)
      (slopes,) = pull_back(jnp.ones_like(logps))

    def rewards(coordinates):
      hidden = hidden_of(coordinates)
      if not of_thumbs:
        return logps_of(hidden)
      moved = hidden.astype(jnp.float32) - generic.astype(jnp.float32)
      return (moved * slopes.astype(jnp.float32)).sum((-2, -1))

    def margins(coordinates):
      ratios = losses.log_ratios(
        rewards(coordinates),
        batch.reference_logps,
        batch.response_mask if length_normalized else None,
      )
      # A row that fills up has no margin.
      ratios = jnp.where(
        batch.weight[:, None] > 0, losses.differences(ratios), 0.0
      )
      return beta * ratios[:, 0]

    # Each margin depends on its own coordinates alone, so that one pass back
    # gives all their gradients.
    values, pull_back = jax.vjp(margins, coordinates)
    (gradients,) = pull_back(jnp.ones_like(values))
    return values, gradients

  return jax.jit(run)


class Margins:
  """Margins under a policy.

  Args:
    recipe: of the policy's run.
    base: of that run, which is the reference.
    policy: whose user table is not read.
  """

  def __init__(
    self,
    recipe: recipes.Recipe,
    base: base_lib.Base,
    policy: policies.SplitPolicy,
  ):
    self._recipe, self._base, self._frozen = recipe, base, policy.frozen
    self._trainable, _ = host_users.narrow(
      policy.trainable, np.zeros(1, np.int32)
    )
    self._mesh = sharding.mesh_of(policy.frozen)
    # Of few rows, that batches have had.
    self._shapes: set[tuple[int, int, int]] = set()
    # As many rows as a microbatch of training has, both branches.
    train = recipe.train
    self._most = 2 * train.batch_size // train.accumulation_steps
    chunk = sharding.logits_chunk(train.logits_chunk, self._mesh)
    loss = recipe.loss
    self._compiled = functools.partial(
      _compiled, policy.graphdef, loss.beta, loss.length_normalized, chunk
    )

  def reference_logps(self, examples: Examples) -> Float[np.ndarray, "B 2"]:
    """`log ref(y | x)` of both responses, of what the reference reads."""
    logps = np.zeros((len(examples), 2), np.float32)
    rows = branch_batches.reference_rows(self._recipe, list(examples))
    for batch, values in scoring.score_batches(
      scoring.of_base(self._base),
      self.batches(rows, None),
      self._recipe.train.logits_chunk,
    ):
      real = batch.index >= 0
      logps[batch.index[real]] = values[real]
    return logps

  def of(
    self,
    examples: Examples,
    reference_logps: Float[np.ndarray, "B 2"],
    coordinates: Float[np.ndarray, "B K"],
    basis: Float[np.ndarray, "K ..."],
    of_thumbs: bool = False,
  ) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B K"]]:
    """The margin of each pair in favour of its first response; its gradient.

    Args:
      basis: rows; the last is the generic user's.
      of_thumbs: whether these are thumbs (`choices.Choice`), whose responses
        have a surplus in place of a log-ratio.
    """
    margins = np.zeros(len(examples))
    gradients = np.zeros(coordinates.shape)
    if self._mesh is not None:
      basis = sharding.put(basis, sharding.whole(self._mesh))
    place = sharding.batch_placer(self._mesh)
    run = self._compiled(of_thumbs)
    for batch in self.batches(examples, reference_logps):
      real = batch.index >= 0
      padded = np.zeros((len(real), coordinates.shape[1]), np.float32)
      padded[real] = coordinates[batch.index[real]]
      values, slopes = run(
        self._trainable, self._frozen, place(batch), place(padded), basis
      )
      margins[batch.index[real]] = processes.fetch(values)[real]
      gradients[batch.index[real]] = processes.fetch(slopes)[real]
    return margins, gradients

  def batches(
    self, examples: Examples, reference_logps: Float[np.ndarray, "B 2"] | None
  ) -> Iterator[structs.PreferenceBatch]:
    """Batches of few shapes, so that programs are compiled once for all.

    Numbers of rows are powers of two, up to a limit that bounds memory, and
    there are two lengths an octave. Few rows may take a larger shape that was
    there before.
    """
    prefix = self._recipe.user.prefix_length
    sizes = np.array(
      [(len(x.prompt), max(map(len, x.responses))) for x in examples]
    ).reshape(-1, 2)
    order = np.argsort(sizes.sum(1), kind="stable")
    shards = sharding.batch_shards(self._mesh)
    for start in range(0, len(order), self._most):
      chosen = order[start : start + self._most]
      rows = 1
      while rows < min(len(chosen), self._most):
        rows *= 2
      rows = -(-min(rows, self._most) // shards) * shards
      prompt, response = map(int, sizes[chosen].max(0))
      rows, prompt, response = self._had(
        rows,
        batching.padded_length(prompt + prefix) - prefix,
        batching.padded_length(response),
      )
      places = [[int(place)] for place in chosen]
      places += [[]] * (rows - len(chosen))
      yield batching.make_batch(
        examples, reference_logps, places, (prompt, 2, response)
      )

  def _had(self, *shape: int) -> tuple[int, int, int]:
    """The smallest shape that was had and holds this one, or this one."""

    def tokens(shape):
      rows, prompt, response = shape
      return rows * (prompt + 2 * response)

    if shape[0] > _FEW_ROWS:
      return shape
    fitting = [
      had
      for had in self._shapes
      if all(x >= y for x, y in zip(had, shape, strict=True))
      and tokens(had) <= _MOST_TIMES * tokens(shape)
    ]
    self._shapes.add(found := min(fitting, key=tokens, default=shape))
    return found
