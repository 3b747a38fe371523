"""The P-DPO objective: what a batch's loss is, and which rows it runs.

Axes: B examples, N responses (0 is the chosen one), M = N - 1 pairs an example.
"""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from pdpo_jax.core import sections, structs
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import logprobs, losses


@dataclasses.dataclass(unsafe_hash=True)
class LossConfig(sections.Section):
  """The P-DPO objective."""

  # "sigmoid" (DPO), "ipo", "hinge" or "robust".
  kind: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
  # How strongly the policy is held to the reference.
  beta: sections.Positive = 0.5
  # Weight of the user branch; the generic branch has 1 - alpha.
  alpha: sections.Share = 0.5
  # Probability that a label is wrong, for "sigmoid" and "robust".
  label_smoothing: Annotated[float, sections.Range(least=0, below=0.5)] = 0.0
  # Weight of the chosen response's mean negative log-likelihood a token, added
  # to each pair's loss (arXiv:2404.19733), so that a margin is not won by
  # making both responses unlikely. 0: the paper's loss.
  chosen_nll: sections.NotNegative = 0.0
  # Rewards are means over a response's tokens, and not sums: as TRL has them
  # for "ipo", and its paper has not.
  length_normalized: bool = False
  # "sample" runs both branches on every example (the paper). "batch" makes
  # user's and generic rows examples of their own, independently shuffled, and
  # mixes their means in each microbatch (the released code): with
  # `train.accumulation_steps` as large as `train.batch_size`, a row's weight is
  # alpha or 1 - alpha. Vanilla DPO is trained on the same rows, and in as many
  # steps, with weight 0 for users'.
  mixing: Literal["sample", "batch"] = "sample"
  # Who reads the user's text besides the user branch: the reference (the
  # released code), the generic branch (the paper), vanilla DPO in training (the
  # paper; with it or without, answers and evaluation are given the text).
  reference_sees_text: bool = False
  generic_sees_text: bool = True
  vanilla_sees_text: bool = True

  def check_together(self) -> None:
    if self.label_smoothing and self.kind in ("ipo", "hinge"):
      raise ValueError(
        f"loss.label_smoothing {self.label_smoothing} has no meaning for "
        f"loss.kind {self.kind!r}; use 0, or 'sigmoid' or 'robust'"
      )

  def branches(self) -> list[tuple[str, float]]:
    """The branches that are run, with their weights in an example's loss."""
    if self.mixing == "batch":
      # Rows 0 of the batch are the generic branch; `pair_scales` weighs them.
      return [("user", 1.0)]
    both = [("user", self.alpha), ("generic", 1.0 - self.alpha)]
    return [(name, weight) for name, weight in both if weight > 0]


def response_hidden(
  policy: policy_lib.Policy,
  batch: structs.PreferenceBatch,
  prefix: Float[Array, "B T D"],
  dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B N R D"]:
  """What the output head reads before each token of each response."""
  return policy.response_hidden(
    batch.prompt,
    batch.prompt_mask,
    batch.responses,
    batch.response_mask,
    prefix,
    dropout_key,
    batch.packed,
    batch.decisions,
  )


def logps_of_hidden(
  policy: policy_lib.Policy,
  batch: structs.PreferenceBatch,
  hidden: Float[Array, "B N R D"],
  logits_chunk: int,
) -> Float[Array, "B N"]:
  """The log-probability of each response, in nats."""
  return logprobs.response_logps(
    hidden,
    batch.responses,
    batch.response_mask,
    *policy.lm.head(),
    logits_chunk,
    batch.packed,
  )


def response_logps(
  policy: policy_lib.Policy,
  batch: structs.PreferenceBatch,
  prefix: Float[Array, "B T D"],
  logits_chunk: int,
  dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B N"]:
  """`log pi(y | x, prefix)` of each response, in nats."""
  hidden = response_hidden(policy, batch, prefix, dropout_key)
  return logps_of_hidden(policy, batch, hidden, logits_chunk)


def branch_logps(
  policy: policy_lib.Policy,
  batch: structs.PreferenceBatch,
  objective: LossConfig,
  dropout_key: Key[Array, ""] | None = None,
  logits_chunk: int = 128,
) -> dict[str, Float[Array, "B N"]]:
  """The log-probabilities under each branch that has weight, in one pass.

  The prefix stands in front of the prompt, so the branches share no state; they
  are rows of one larger batch.
  """
  rows = batch.user_row.shape[0]
  names = [name for name, _ in objective.branches()]
  prefixes = {
    "user": lambda: policy.user_model(batch.user_row),
    "generic": lambda: jnp.repeat(policy.user_model.generic()[None], rows, 0),
  }

  def merge(*branches):
    # An example's rows lie beside each other, so that on a mesh they stay on
    # the devices that have the example.
    rest = branches[0].shape[1:]
    return jnp.stack(branches, 1).reshape(rows * len(names), *rest)

  merged = jax.tree.map(
    merge, *(_rows_of_branch(batch, name) for name in names)
  )
  if batch.packed is not None:
    merged = dataclasses.replace(merged, packed=batch.packed * len(names))
  logps = response_logps(
    policy,
    merged,
    merge(*(prefixes[name]() for name in names)),
    logits_chunk,
    dropout_key,
  )
  logps = logps.reshape(rows, len(names), -1)
  return {name: logps[:, place] for place, name in enumerate(names)}


def _rows_of_branch(batch, name):
  """The batch with the prompts that a branch reads."""
  if batch.bare_prompt is None:
    return batch
  if name == "generic":
    batch = dataclasses.replace(
      batch, prompt=batch.bare_prompt, prompt_mask=batch.bare_prompt_mask
    )
  return dataclasses.replace(batch, bare_prompt=None, bare_prompt_mask=None)


def pair_scales(
  batch: structs.PreferenceBatch, objective: LossConfig, microbatches: int = 1
) -> Float[Array, "B M"]:
  """What each pair's loss is multiplied by in the loss of the batch.

  Mixing by "sample" gives the mean over pairs (each by its weight). By "batch",
  as in the released code, rows of known users and rows of the generic user are
  different examples, and a microbatch's loss is

      alpha mean(pairs of users) + (1 - alpha) mean(pairs of the generic user)

  Args:
    microbatches: that the batch is run in, as `split_in_microbatches`; "batch"
      mixes within each.
  """
  weights = losses.pair_weights(batch.response_mask, batch.weight, batch.chosen)
  if objective.mixing == "sample":
    return weights / jnp.maximum(weights.sum(), 1e-6)
  known = (batch.user_row > 0)[:, None]
  scales = jnp.zeros_like(weights)
  for share, kind_weights in (
    (objective.alpha, jnp.where(known, weights, 0.0)),
    (1.0 - objective.alpha, jnp.where(known, 0.0, weights)),
  ):
    by_microbatch = split_in_microbatches(kind_weights, microbatches)
    total = jnp.maximum(by_microbatch.sum((1, 2), keepdims=True), 1e-6)
    scales += share / microbatches * join_microbatches(by_microbatch / total)
  return scales


def loss_and_metrics(
  policy: policy_lib.Policy,
  batch: structs.PreferenceBatch,
  objective: LossConfig,
  scales: Float[Array, "B M"],
  dropout_key: Key[Array, ""] | None = None,
  logits_chunk: int = 128,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """P-DPO's loss (section 2.3 of arXiv:2402.05133) on a batch or a microbatch.

      sum over pairs of  s [alpha l(user branch) + (1 - alpha) l(generic)]

  with l a function of beta times the log-ratio difference (a token, if it is
  `length_normalized`), and, where the
  objective has `chosen_nll`, that times the chosen response's mean negative
  log-likelihood a token besides (iterative RPO, arXiv:2404.19733).

  Args:
    scales: s, from `pair_scales` of the whole batch, so that microbatches add
      up to its loss.
    logits_chunk: positions with logits at a time, as `logprobs.response_logps`.

  Returns:
    The loss, and metrics that add up over microbatches as well: `loss`, for
    each branch `reward_accuracy` (share of pairs whose chosen response has the
    larger reward), the mean `chosen_reward` and `rejected_reward` and their
    difference, the `margin`, those of the first branch without its name; of
    that branch the mean `chosen_log_ratio` and `chosen_tokens`, whose quotient
    says how much more likely a token chosen responses are than under the
    reference; and `example_loss` `[B]`, of each row.
  """
  pair_loss = losses.LOSSES[objective.kind]
  logps = branch_logps(policy, batch, objective, dropout_key, logits_chunk)
  pairs = jnp.zeros_like(scales)
  metrics = {}
  for place, (name, branch_weight) in enumerate(objective.branches()):
    log_ratios = losses.log_ratios(
      logps[name],
      batch.reference_logps,
      batch.response_mask if objective.length_normalized else None,
    )
    # A pair that does not exist must not contribute even a NaN, nor get one.
    ratios = losses.differences(log_ratios, batch.chosen)
    ratios = jnp.where(scales > 0, ratios, 0.0)
    pairs += branch_weight * pair_loss(
      ratios, objective.beta, objective.label_smoothing
    )
    if objective.chosen_nll:
      # A row that fills up a batch has no token.
      length = jnp.maximum(batch.response_mask.sum(-1), 1)
      nll = losses.of_chosen(-logps[name] / length, batch.chosen)
      pairs += branch_weight * objective.chosen_nll * nll
    ratios = jax.lax.stop_gradient(ratios)
    chosen = losses.of_chosen(log_ratios, batch.chosen)
    chosen = jnp.where(scales > 0, chosen, 0.0)
    prefix = "generic_" if place else ""
    margin = objective.beta * jnp.sum(scales * ratios)
    reward = objective.beta * jnp.sum(scales * jax.lax.stop_gradient(chosen))
    metrics |= {
      f"{prefix}reward_accuracy": jnp.sum(scales * (ratios > 0)),
      f"{prefix}margin": margin,
      f"{prefix}chosen_reward": reward,
      f"{prefix}rejected_reward": reward - margin,
    }
    if place == 0:
      length = batch.response_mask.sum(-1, dtype=jnp.float32)
      length = losses.of_chosen(length, batch.chosen)
      nats = losses.of_chosen(logps[name] - batch.reference_logps, batch.chosen)
      nats = jax.lax.stop_gradient(jnp.where(scales > 0, nats, 0.0))
      metrics |= {
        "chosen_log_ratio": jnp.sum(scales * nats),
        "chosen_tokens": jnp.sum(scales * length),
      }
  example_loss = jnp.sum(scales * pairs, -1)
  loss = jnp.sum(example_loss)
  return loss, {"loss": loss, "example_loss": example_loss} | metrics


def split_in_microbatches(
  x: Shaped[Array, "B *rest"], microbatches: int
) -> Shaped[Array, "microbatches B/microbatches *rest"]:
  """Of m microbatches the first has examples 0, m, 2 m and so on.

  On a mesh each device's examples come in a row, and it has its share of each
  microbatch without anything being sent.
  """
  return x.reshape(
    x.shape[0] // microbatches, microbatches, *x.shape[1:]
  ).swapaxes(0, 1)


def join_microbatches(
  x: Shaped[Array, "microbatches each *rest"],
) -> Shaped[Array, "microbatches*each *rest"]:
  """`split_in_microbatches` undone."""
  return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
