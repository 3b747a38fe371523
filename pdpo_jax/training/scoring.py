"""What a policy thinks of comparisons, without training on them."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from pdpo_jax.core import processes, structs
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import (
  host_users,
  policies,
  sharding,
)
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib


def of_base(base: base_lib.Base) -> policies.SplitPolicy:
  """The base itself: no LoRA, and a prefix for nobody."""
  graphdef, params = nnx.split(policy_lib.base_policy(base.lm))
  return policies.SplitPolicy(graphdef, nnx.State({}), params)


def score_batches(
  policy: policies.SplitPolicy,
  batches: Iterable[structs.PreferenceBatch],
  logits_chunk: int,
) -> Iterator[tuple[structs.PreferenceBatch, Float[np.ndarray, "B N"]]]:
  """Each batch with the log-probabilities of its responses, in nats.

  Args:
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
  """
  mesh = sharding.mesh_of(policy.frozen)
  score = step_lib.make_score(
    policy.graphdef, sharding.logits_chunk(logits_chunk, mesh)
  )
  place = sharding.batch_placer(mesh)
  for batch in batches:
    trainable, rows = host_users.narrow(policy.trainable, batch.user_row)
    placed = dataclasses.replace(place(batch), user_row=rows)
    yield batch, processes.fetch(score(trainable, policy.frozen, placed))


class Places(NamedTuple):
  """Where the responses of a batch lie in its arrays, and in the data set."""

  row: Int[np.ndarray, " responses"]
  column: Int[np.ndarray, " responses"]
  example: Int[np.ndarray, " responses"]
  response: Int[np.ndarray, " responses"]  # 0 is the chosen one


def places(batch: structs.PreferenceBatch) -> Places:
  """Those of a batch that lies on the host."""
  row, column = np.nonzero(batch.response_mask.any(-1))
  examples = np.broadcast_to(batch.examples, batch.response_mask.shape[:2])
  example = examples[row, column]
  # A comparison's responses lie in a row, the chosen one before the others.
  order = np.argsort(example, kind="stable")
  row, column, example = row[order], column[order], example[order]
  _, first, sizes = np.unique(example, return_index=True, return_counts=True)
  response = np.arange(len(example)) - np.repeat(first, sizes)
  return Places(row, column, example, response)


class HeldOut(NamedTuple):
  """What a policy thinks of held-out examples, each read as its own user.

  Attributes:
    log_ratios: `d(y) = log pi(y | x, u) - log ref(y | x)` of each response, in
      nats; NaN where an example has no such response.
    lengths: of responses, in tokens.
  """

  log_ratios: Float[np.ndarray, "examples N"]
  lengths: Int[np.ndarray, "examples N"]

  @property
  def chosen_per_token(self) -> float:
    """How much more likely chosen responses are than under the reference.

    In nats a token, over all of them. A margin also grows where this falls.
    """
    return float(self.log_ratios[:, 0].sum() / self.lengths[:, 0].sum())

  @property
  def per_token(self) -> Float[np.ndarray, "examples N"]:
    return self.log_ratios / self.lengths.clip(1)

  def differences(
    self, length_normalized: bool = False
  ) -> Float[np.ndarray, "examples M"]:
    """`d(chosen) - d(rejected)`; NaN where an example has no such pair.

    Args:
      length_normalized: as `objective.LossConfig.length_normalized`.
    """
    ratios = self.per_token if length_normalized else self.log_ratios
    return ratios[:, :1] - ratios[:, 1:]


def score_held_out(
  policy: policies.SplitPolicy,
  batches: batching.PreferenceBatches,
  logits_chunk: int,
) -> HeldOut:
  """Scores held-out examples.

  Args:
    batches: with reference log-probabilities.
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
  """
  shape = batches.num_examples, batches.num_responses
  log_ratios = np.full(shape, np.nan, np.float32)
  lengths = np.zeros(shape, np.int32)
  for batch, logps in score_batches(policy, batches.in_order(), logits_chunk):
    at = places(batch)
    ratios = logps - batch.reference_logps
    log_ratios[at.example, at.response] = ratios[at.row, at.column]
    tokens = batch.response_mask.sum(-1)
    lengths[at.example, at.response] = tokens[at.row, at.column]
  return HeldOut(log_ratios, lengths)
