"""Supervised fine-tuning: what a base is taught before preferences are learnt.

A base that was given learns the responses that were chosen; for want of one, a
small GPT-J learns the synthetic language, or texts that were rated, from
scratch.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import transformers
from flax import nnx
from jaxtyping import Array, Float

from pdpo_jax.core import kept, processes, sections, structs
from pdpo_jax.data import batching, prompts, tokenize, tokenized
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import attention, gptj
from pdpo_jax.training import loop, optimizer, recipes, sharding
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import tensor_files


@dataclasses.dataclass
class SftConfig(sections.Section):
  """What the base is taught first, where `base.path` is empty."""

  # A base, as `base.path`, that learns the chosen responses of the training
  # comparisons with all of its weights, in float32: for small ones. Empty: a
  # small GPT-J learns the synthetic language, or texts that were rated, from
  # scratch.
  path: str = ""
  # Of the one from scratch, down to num_posts; the rest is for both.
  vocab_size: sections.Count = 512
  width: sections.Count = 128
  num_layers: sections.Count = 2
  num_heads: sections.Count = 4
  mlp_width: sections.Count = 512
  rotary_dim: sections.Count = 16
  # Longest prompt and answer together, prefix included, in tokens.
  max_positions: sections.Count = 256
  num_posts: sections.Count = 16_000
  batch_size: sections.Count = 16
  steps: sections.Count = 600
  # 0: 4e-3 from scratch, and 5e-5 for a base that was given.
  learning_rate: sections.NotNegative = 0.0
  warmup_steps: sections.CountOrNone = 50


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
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
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


# Names the data that a base was taught on, in its folder.
_DATA = "data.txt"


@dataclasses.dataclass(frozen=True)
class _Start:
  """What is trained, and on what.

  Attributes:
    lm: the language model, weights in float32.
    tokenizer: of it.
    end_of_turn: as `base_lib.Base`.
    sequences: prompt and response ids.
  """

  lm: nnx.Module
  tokenizer: transformers.PreTrainedTokenizerBase
  end_of_turn: tuple[int, ...]
  sequences: Sequence[tokenize.TextPair]


def _from_scratch(
  sft: SftConfig, recipe: recipes.Recipe, pairs: Sequence[tuple[str, str]]
) -> _Start:
  """A tokenizer and a GPT-J for (prompt, answer); an answer may be empty."""
  tokenizer = tokenize.train_tokenizer(
    (prompt + answer for prompt, answer in pairs), sft.vocab_size
  )
  data = dataclasses.replace(recipe.data, template="plain")
  encoder = prompts.make_encoder(tokenizer, data)
  arch = gptj.Architecture(
    vocab_size=len(tokenizer),
    width=sft.width,
    num_layers=sft.num_layers,
    num_heads=sft.num_heads,
    mlp_width=sft.mlp_width,
    rotary_dim=sft.rotary_dim,
    max_positions=sft.max_positions,
  )
  lm = gptj.GPTJ(arch, rngs=nnx.Rngs(recipe.seed))
  nnx.update(lm, _rescale(nnx.state(lm), sft.width))
  return _Start(lm, tokenizer, (), tokenize.tokenize_pairs(pairs, encoder))


def _from_base(
  path: str,
  recipe: recipes.Recipe,
  examples: Sequence[structs.PreferenceExample],
) -> _Start:
  """A base, and the chosen responses, with prompts without users' texts."""
  base = base_lib.read_base(
    path, dataclasses.replace(recipe.base, param_dtype="float32")
  )
  split = tokenized.tokenize_split(
    tokenized.TRAIN,
    examples,
    recipe.data,
    base.tokenizer,
    users_lib.UserIndex.from_examples(examples),
  )
  chosen = [(row.bare_prompt, row.responses[0]) for row in split.tokenized]
  return _Start(base.lm, base.tokenizer, base.end_of_turn, chosen)


def check_data(folder: pathlib.Path, data: str) -> None:
  """Checks that a base was taught on this data, where that is written down.

  Raises:
    ValueError: if it was on other data, parts of which may be held out now.
  """
  file = folder / _DATA
  if kept.was_written(file) and kept.read_text(file) != data:
    raise ValueError(
      f"the base in {folder} was taught on other data than there is now, and "
      "may know what is held out; use another --config.workdir"
    )


def train_base(
  sft: SftConfig,
  recipe: recipes.Recipe,
  dataset: dataset_lib.Dataset,
  folder: pathlib.Path,
  data: str = "",
) -> base_lib.Base:
  """Trains all weights of a base, and writes it.

  Args:
    sft: where to start, sizes and budget.
    recipe: `base`, `data`, `mesh` and `seed` apply, and of `train` how often
      it is logged and saved.
    dataset: what is learnt: the chosen responses of its training comparisons,
      or, from scratch, its `sft_pairs`.
    folder: gets the base in Hugging Face format, and the training's metrics.
    data: names the data set; a training only goes on with the same.

  Raises:
    ValueError: as `base_lib.read_base` and `tokenized.tokenize_split`, of the
      base that is taught.
  """
  if sft.path:
    start = _from_base(sft.path, recipe, dataset.train)
  else:
    start = _from_scratch(sft, recipe, dataset.sft_pairs)
  batches = batching.TextBatches(
    start.sequences,
    sft.batch_size,
    recipe.seed,
    max_shapes=recipe.data.max_shapes,
  )
  # Trained in float32, whatever precision it is used in afterwards.
  graphdef, params = nnx.split(start.lm)
  rate = sft.learning_rate or (5e-5 if sft.path else 4e-3)
  transformation = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      optimizer.cosine_schedule(rate, sft.warmup_steps, sft.steps),
      b2=0.95,
      weight_decay=0.1,
      mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
    ),
  )
  state = structs.TrainState(
    jnp.zeros((), jnp.int32), params, transformation.init(params)
  )
  # A small model is whole on every device; batches are split.
  mesh = sharding.make_mesh(recipe.mesh)
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
      examples=sft.batch_size,
      looks=(),
      notice=lambda step, values: "",
      describe=str,
      users=None,
      meta={
        "sft": repr(dataclasses.asdict(sft)),
        "seed": recipe.seed,
        "data": data,
      },
    ),
    recipe.train,
  )
  params = state.trainable
  # Adam's moments are twice the weights, which are soon read a second time.
  del state
  if processes.is_first():
    tensor_files.remove_unfinished(folder)
    kept.write(folder / _DATA, data)
    whole = params
    if mesh is not None:
      whole = jax.tree.map(lambda x: jnp.asarray(processes.fetch(x)), params)
    lm = nnx.merge(graphdef, whole)
    base = base_lib.Base(
      lm, start.tokenizer, base_lib.fingerprint(lm), start.end_of_turn
    )
    base_lib.write_base(folder, base, summed=True)
    del whole, lm, base
  processes.wait_for_all()
  del params, start
  # As any later command finds it, in the configured precision.
  return base_lib.read_base(str(folder), recipe.base, sharding.of_base(mesh))
