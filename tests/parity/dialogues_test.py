"""Dialogues that share a trunk, against a plain forward pass a response.

Torch knows nothing of trunks: it reads every turn's prompt and each of its
responses anew, without padding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pdpo_jax.data import batching
from pdpo_jax.models import policy
from pdpo_jax.training import losses
from pdpo_jax.training import objective as objective_lib
from tests import dialogues, golden_cases
from tests.parity import torch_policy, torch_reference

pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)
ALPHA, BETA = torch_reference.ALPHA, torch_reference.BETA
# Of dialogues that the tiny GPT-J has positions for.
SEED, POSITIONS = 3, 64


class Expected:
  """What torch finds of some comparisons.

  Attributes:
    reference: log-probabilities `[examples, N]`, in nats.
    pairs: the loss of each, by example and number of the rejected response.
  """

  def __init__(self, made: torch_policy.TorchPolicy, examples, generic_prompt):
    widest = max(len(example.responses) for example in examples)
    self.reference = np.full((len(examples), widest), np.nan, np.float32)
    self.pairs: dict[tuple[int, int], torch.Tensor] = {}
    self._trained = made.trained
    for index, example in enumerate(examples):
      ratios = []
      for number, response in enumerate(example.responses):
        reference = made.reference_logp(example.prompt, response)
        self.reference[index, number] = reference.item()
        ratios.append(
          [
            made.logp(prompt, response, user) - reference
            for prompt, user in (
              (example.prompt, example.user_row),
              (generic_prompt(example), 0),
            )
          ]
        )
      for number, rejected in enumerate(ratios[1:], 1):
        with_user, generic = (
          torch_reference.pair_loss("sigmoid", mine - theirs, 0.0)
          for mine, theirs in zip(ratios[0], rejected, strict=True)
        )
        self.pairs[index, number] = ALPHA * with_user + (1 - ALPHA) * generic

  def gradients(self) -> dict[str, np.ndarray]:
    """Of the mean over pairs, by the golden files' names."""
    mean = sum(self.pairs.values()) / len(self.pairs)
    found = torch.autograd.grad(mean, [*self._trained.values()])
    return {
      name: value.numpy()
      for name, value in zip(self._trained, found, strict=True)
    }


def losses_of_pairs(batch, logps, objective):
  """By example and number of the rejected response."""
  mixed = 0.0
  for branch, weight in objective.branches():
    ratios = losses.log_ratios(logps[branch], batch.reference_logps)
    mixed += weight * losses.LOSSES[objective.kind](
      losses.differences(ratios, batch.chosen), objective.beta, 0.0
    )
  scales = objective_lib.pair_scales(batch, objective)
  found, seen = {}, {}
  # Rejected responses of a comparison come in their order.
  for row, column in zip(*np.nonzero(np.asarray(scales)), strict=True):
    index = int(batch.examples[row, column + 1])
    seen[index] = seen.get(index, 0) + 1
    found[index, seen[index]] = float(mixed[row, column])
  return found


@pytest.mark.parametrize(
  ("name", "case", "generic_sees_text"),
  [
    ("gptj", "individual", False),
    ("gptj", "cluster", True),
    ("llama", "individual", True),
    ("llama_tied", "softmax", False),
  ],
)
def test_losses_and_gradients_of_dialogues_are_those_of_plain_passes(
  name, case, generic_sees_text, record_property
):
  arrays = golden_cases.read(name)
  examples = dialogues.make(SEED)
  made = torch_policy.TorchPolicy(arrays, name, case)
  expected = Expected(
    made,
    examples,
    lambda each: each.prompt if generic_sees_text else each.bare_prompt,
  )
  ours = golden_cases.make_policy(arrays, name, case)
  batches = batching.PreferenceBatches(
    examples,
    expected.reference,
    len(examples),
    0,
    torch_reference.NUM_TOKENS,
    with_bare_prompt=not generic_sees_text,
    max_shapes=1,
    share_trunks=True,
  )
  # One to six turns each, with one to three rejected responses.
  assert sorted(map(len, batches.trunks)) == [1, 2, 3, 4, 5, 6]
  assert {len(example.responses) for example in examples} == {2, 3, 4}
  assert batches.shapes[0][0] + 8 < POSITIONS
  batch = jax.tree.map(jnp.asarray, batches.batch(0))
  objective = golden_cases.objective()
  graphdef, trainable, frozen = nnx.split(ours, policy.trainable, ...)

  @jax.jit
  def differentiate(trainable, frozen, batch):
    def loss_of(trainable):
      merged = nnx.merge(graphdef, trainable, frozen)
      scales = objective_lib.pair_scales(batch, objective)
      loss, _ = objective_lib.loss_and_metrics(merged, batch, objective, scales)
      return loss, objective_lib.branch_logps(merged, batch, objective)

    return jax.grad(loss_of, has_aux=True)(trainable)

  gradients, logps = differentiate(trainable, frozen, batch)
  pairs = losses_of_pairs(batch, logps, objective)
  assert pairs.keys() == expected.pairs.keys()
  worst = max(
    abs(pairs[key] - value.item()) for key, value in expected.pairs.items()
  )
  record_property("pair loss difference", worst)
  found = golden_cases.named(ours.lm.arch, gradients)
  wanted = expected.gradients()
  assert found.keys() == wanted.keys()
  relative = max(
    golden_cases.relative_difference(found[key], value)
    for key, value in wanted.items()
  )
  record_property("gradients, relative", relative)
  print(f"{name} {case}: pairs {worst:.2g}, gradients {relative:.2g}")
  assert worst < 1e-5
  assert relative < 1e-4
