"""Supervised fine-tuning: a small base from scratch, for want of a real one."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from pdpo_jax import config as config_lib
from pdpo_jax import processes, structs
from pdpo_jax.data import batching, prompts, tokenize
from pdpo_jax.models import attention, gptj
from pdpo_jax.training import loop, optimizer, sharding
from pdpo_jax.weights import base as base_lib


def text_loss(lm: nnx.Module, batch: structs.TextBatch) -> Float[Array, ""]:
  """Mean `-log p` of the target tokens, in nats."""
  positions = attention.positions_of(batch.mask)
  hidden, _ = lm.hidden(
    lm.embed(batch.tokens), positions, attention.causal(batch.mask, lm.kernel)
  )
  losses = optax.softmax_cross_entropy_with_integer_labels(
    lm.logits(hidden[:, :-1]), batch.tokens[:, 1:]
  )
  targets = batch.target_mask[:, 1:]
  return jnp.sum(jnp.where(targets, losses, 0.0)) / jnp.maximum(
    targets.sum(), 1
  )


def make_sft_step(
  graphdef: Any, transformation: optax.GradientTransformation, places: Any
) -> Callable:
  """The jitted step `(state, batch) -> (state, metrics)` on all weights.

  Args:
    places: where the new state lies, as `sharding.pinned`.
  """

  def sft_step(state, batch):
    def loss_of(trainable):
      return text_loss(nnx.merge(graphdef, trainable), batch)

    loss, gradients = jax.value_and_grad(loss_of)(state.trainable)
    updates, opt_state = transformation.update(
      gradients, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = {"loss": loss, "grad_norm": optax.global_norm(gradients)}
    return structs.TrainState(state.step + 1, trainable, opt_state), metrics

  return jax.jit(
    sft_step,
    donate_argnums=0,
    out_shardings=None if places is None else (places, None),
  )


def _rescale(params: nnx.State, width: int) -> nnx.State:
  """Matrices with standard deviation `width ** -0.5` at the start.

  GPT-J's 0.02 suits widths of thousands; a small model learns slowly from it.
  """
  flat = []
  for path, variable in nnx.to_flat_state(params):
    if path[-1] == "kernel" or path[0] in ("wte", "lm_head"):
      variable = variable.replace(variable[...] * (width**-0.5 / 0.02))
    flat.append((path, variable))
  return nnx.from_flat_state(flat)


def train_base(
  config: config_lib.Config,
  pairs: Sequence[tuple[str, str]],
  folder: pathlib.Path,
) -> base_lib.Base:
  """Trains a tokenizer and a GPT-J on (prompt, answer) and writes both.

  Args:
    config: its `sft` has sizes and budget.
    pairs: texts; an answer may be empty.
    folder: gets the base in Hugging Face format, and the training's metrics.
  """
  sft, data = config.sft, config.data
  tokenizer = tokenize.train_tokenizer(
    (prompt + answer for prompt, answer in pairs), sft.vocab_size
  )
  encoder = prompts.PromptEncoder(tokenizer, "plain", data.max_prompt_tokens)
  tokenized = tokenize.tokenize_pairs(pairs, encoder)
  batches = batching.TextBatches(
    tokenized, sft.batch_size, config.seed, max_shapes=data.max_shapes
  )
  arch = gptj.Architecture(
    vocab_size=len(tokenizer),
    width=sft.width,
    num_layers=sft.num_layers,
    num_heads=sft.num_heads,
    mlp_width=sft.mlp_width,
    rotary_dim=sft.rotary_dim,
    max_positions=sft.max_positions,
  )
  # Trained in float32, whatever precision it is used in afterwards.
  graphdef, params = nnx.split(gptj.GPTJ(arch, rngs=nnx.Rngs(config.seed)))
  params = _rescale(params, sft.width)
  transformation = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      optimizer.cosine_schedule(sft.learning_rate, sft.warmup_steps, sft.steps),
      b2=0.95,
      weight_decay=0.1,
      mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    ),
  )
  state = structs.TrainState(
    jnp.zeros((), jnp.int32), params, transformation.init(params)
  )
  # A small model is whole on every device; batches are split.
  mesh = sharding.make_mesh(config.mesh)
  place = sharding.batch_placer(mesh)
  if mesh is not None:
    state = sharding.put(state, sharding.whole(mesh))
  state = loop.run(
    loop.Training(
      name="sft",
      folder=folder,
      state=state,
      step=make_sft_step(graphdef, transformation, sharding.pinned(state)),
      batch=lambda number: place(batches.batch(number)),
      total_steps=sft.steps,
      samples=sft.batch_size,
      evaluate=None,
      describe=str,
      users=None,
      meta={"sft": repr(dataclasses.asdict(sft)), "seed": config.seed},
    ),
    config.train,
  )
  if processes.is_first():
    own = jax.tree.map(lambda x: jnp.asarray(processes.fetch(x)), state)
    lm = nnx.merge(graphdef, own.trainable)
    base = base_lib.Base(lm, tokenizer, base_lib.fingerprint(lm))
    base_lib.write_base(folder, base)
  processes.wait_for_all()
  # As any later command finds it, in the configured precision.
  return base_lib.read_base(str(folder), config.base, sharding.of_base(mesh))
