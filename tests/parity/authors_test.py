"""The released code's objective, from what the paper's account says it does.

Rows of users and generic rows are examples of their own, shuffled
independently; the reference reads the user's text, generic rows have lost it;
the prefix comes right after the first token; a microbatch's loss is alpha times
the mean over users' rows plus (1 - alpha) times the mean over generic rows.
"""

import collections
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.data import tokenize, tokenized
from pdpo_jax.models import policy
from pdpo_jax.training import branch_batches, pdpo, reference
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.weights import base as base_lib
from tests import golden_cases
from tests.parity import torch_policy

pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def authors_config(name: str):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config("authors")
  config.train.batch_size = 6
  # Run whole here, whatever microbatches it is mixed by.
  config.train.accumulation_steps = 1
  config.user.num_tokens = golden_cases.read("gptj")[
    "individual/users/generic_prefix"
  ].shape[0]
  return config


def examples(vocab: int, with_text: bool) -> tokenized.TokenizedSplit:
  """Seven comparisons with one rejected response."""
  rng = np.random.default_rng(5)

  def ids(low, high):
    return rng.integers(0, vocab, rng.integers(low, high)).astype(np.int32)

  rows = []
  for user in (3, 12, 3, 7, 1, 5, 12):
    first, text, asked = ids(1, 2), ids(1, 6), ids(1, 7)
    text = text[: with_text * text.size]
    rows.append(
      structs.TokenizedExample(
        user_row=user,
        prompt=np.concatenate([first, text, asked]),
        bare_prompt=np.concatenate([first, asked]),
        responses=(ids(1, 8), ids(1, 8)),
      )
    )
  return tokenized.TokenizedSplit(
    tokenized.TRAIN, [], rows, collections.Counter()
  )


def both_kinds(batch: structs.PreferenceBatch) -> bool:
  """Whether a batch is full, and both microbatches have rows of both kinds."""
  halves = objective_lib.split_in_microbatches(
    jnp.asarray(batch.user_row > 0), 2
  )
  return batch.weight.all() and all(0 < sum(half) < 3 for half in halves)


def row_loss(theirs, row, user, prompt, loss):
  """In torch, of an example with one rejected response."""
  ratios = [
    (
      theirs.logp(prompt, response, user)
      - theirs.reference_logp(prompt, response)
    )
    / (len(response) if loss.length_normalized else 1)
    for response in row.responses
  ]
  difference = ratios[0] - ratios[1]
  if loss.kind == "ipo":
    return (difference - 1 / (2 * loss.beta)) ** 2
  return -torch.nn.functional.logsigmoid(loss.beta * difference)


# PRISM's settings on Llama, with its users in clusters; TL;DR's on GPT-J.
@pytest.mark.parametrize(
  ("settings", "name", "case"),
  [("prism", "llama_tied", "softmax"), ("tldr", "gptj", "individual")],
)
@pytest.mark.parametrize(
  ("kind", "accumulation_steps"),
  # In microbatches of one row, its weight is alpha or 1 - alpha. IPO, as the
  # library under that code has it, is of means over tokens.
  [("sigmoid", 1), ("sigmoid", 2), ("sigmoid", 6), ("ipo", 2)],
)
def test_loss_and_gradients_are_those_of_the_released_code(
  settings, name, case, kind, accumulation_steps, tmp_path, record_property
):
  arrays = golden_cases.read(name)
  config = authors_config(settings)
  config.loss.kind = kind
  config.loss.length_normalized = kind == "ipo"
  ours = golden_cases.make_policy(arrays, name, case)
  ours.prefix_position = config.user.prefix_position
  # TL;DR says nothing of its workers.
  split = examples(ours.lm.arch.vocab_size, with_text=settings == "prism")
  rows = branch_batches.example_rows(config.recipe, split)
  read = branch_batches.reference_rows(config.recipe, rows)
  lm = golden_cases.language_model(arrays)
  tokenizer = tokenize.train_tokenizer(["unused"], 300)
  logps = reference.reference_logps(
    base_lib.Base(lm, tokenizer, "tiny"),
    read,
    branch_batches.make_batches(
      config.recipe, split, read, None, trained=False
    ),
    tmp_path,
    45,
  )
  batches = branch_batches.make_batches(
    config.recipe, split, rows, logps, trained=True
  )
  batch = next(
    jax.tree.map(jnp.asarray, b)
    for b in map(batches.batch, range(9))
    if both_kinds(b)
  )
  objective = pdpo.make_objective(config.recipe)
  scales = objective_lib.pair_scales(batch, objective, accumulation_steps)
  graphdef, trainable, frozen = nnx.split(ours, policy.trainable, ...)

  @jax.jit
  def differentiate(trainable):
    def loss_of(trainable):
      made = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.loss_and_metrics(made, batch, objective, scales)[0]

    return jax.value_and_grad(loss_of)(trainable)

  loss, gradients = differentiate(trainable)
  theirs = torch_policy.TorchPolicy(arrays, name, case)
  theirs.place = "after_bos"
  expected = 0.0
  # Rows after the users' are the same examples as generic rows.
  for first in range(accumulation_steps):
    indices = np.asarray(batch.index)[first::accumulation_steps]
    losses = {True: [], False: []}
    for index in indices:
      row = split.tokenized[index % len(split.tokenized)]
      known = bool(index < len(split.tokenized))
      user, prompt = (
        (row.user_row, row.prompt) if known else (0, row.bare_prompt)
      )
      losses[known].append(row_loss(theirs, row, user, prompt, config.loss))
    for known, share in (
      (True, config.loss.alpha),
      (False, 1 - config.loss.alpha),
    ):
      if losses[known]:
        mean = sum(losses[known]) / len(losses[known])
        expected = expected + share * mean / accumulation_steps
  difference = abs(float(loss) - expected.item())
  record_property("loss difference", difference)
  print(f"{name} {case} {kind}: loss differs by {difference:.2g}")
  # IPO squares the margin's distance from 1 / (2 beta), and its error with it.
  assert difference < (1e-4 if kind == "ipo" else 1e-5)
  found = golden_cases.named(ours.lm.arch, gradients)
  for key, value in zip(
    theirs.trained,
    torch.autograd.grad(expected, [*theirs.trained.values()]),
    strict=True,
  ):
    assert golden_cases.relative_difference(found[key], value.numpy()) < 1e-4
