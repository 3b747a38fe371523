"""Reads the golden files, and computes the same numbers with `pdpo_jax`.

A golden file holds one tiny random model and what torch makes of it
(`tests/parity/torch_reference.py`). Its keys:

  config                the model's `config.json`, as text
  weights/NAME          base weights by Hugging Face's names
  logits/...            `inputs_embeds`, mask and logits of a padded batch
  greedy/...            prefix, left-padded prompt, and `generate`'s answer
  CASE/batch/FIELD      the fields of a `PreferenceBatch`
  CASE/lora/NAME        LoRA weights as PEFT shapes them
  CASE/users/NAME       weights of the user model
  CASE/gradients/NAME   of the sigmoid loss, for LoRA and user weights
  CASE/loss/KIND        losses
  CASE/logps/BRANCH     reference, user and generic log-probabilities [B, N]

Parity tests get the same dictionary straight from torch.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import attention, layers, policy, user_model
from pdpo_jax.training import losses
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.weights import loading

FOLDER = pathlib.Path(__file__).parent / "golden"
MODELS = ("gptj", "llama", "llama_tied")
# (model, case) -> (kind, cluster weights, place of the prefix).
CASES = {
  ("gptj", "individual"): ("individual", "free", "front"),
  ("gptj", "cluster"): ("cluster", "free", "front"),
  ("llama", "individual"): ("individual", "free", "front"),
  ("llama", "cluster"): ("cluster", "free", "front"),
  ("llama_tied", "softmax"): ("cluster", "softmax", "after_bos"),
}
RANK, LORA_ALPHA = 3, 7.0
BETA, ALPHA, SMOOTHING = 0.3, 0.35, 0.15
LOSSES = {
  "sigmoid": ("sigmoid", 0.0),
  "smoothed": ("sigmoid", SMOOTHING),
  "ipo": ("ipo", 0.0),
  "hinge": ("hinge", 0.0),
  "robust": ("robust", SMOOTHING),
}


@functools.cache
def read(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f"{name}.npz") as file:
    return dict(file)


def section(arrays: dict[str, np.ndarray], prefix: str):
  """The part of `arrays` whose keys start with `prefix/`, without it."""
  prefix += "/"
  return {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }


def architecture(arrays: dict[str, np.ndarray]) -> policy.Architecture:
  config = json.loads(str(arrays["config"]))
  return policy.ARCHITECTURES[config["model_type"]].from_hf(config)


def language_model(arrays, targets=()) -> nnx.Module:
  """The golden base model; LoRA on `targets` is shapes only."""
  lora = layers.LoraConfig(tuple(targets), RANK, LORA_ALPHA)
  lm = loading.abstract_model(architecture(arrays), lora=lora)
  weights = section(arrays, "weights")
  loading.load_tensors(lm, set(weights), weights.__getitem__)
  return lm


def logits(arrays) -> np.ndarray:
  """Ours for the embeddings of `logits/`, 0 at padding."""
  mask = jnp.asarray(arrays["logits/mask"])
  lm = language_model(arrays)

  @jax.jit
  def run(embeddings):
    hidden, _ = lm.hidden(
      embeddings, attention.positions_of(mask), attention.causal(mask)
    )
    return lm.logits(hidden)

  out = run(jnp.asarray(arrays["logits/embeddings"]))
  return np.where(mask[..., None], out, 0.0)


def batch(arrays, case: str, rows=slice(None)) -> structs.PreferenceBatch:
  """A case's examples, or some rows of them."""
  fields = section(arrays, f"{case}/batch")
  examples = structs.PreferenceBatch(
    index=np.arange(fields["user_row"].shape[0], dtype=np.int32),
    reference_logps=arrays[f"{case}/logps/reference"],
    **fields,
  )
  return jax.tree.map(lambda x: jnp.asarray(x[rows]), examples)


def make_policy(arrays, name: str, case: str) -> policy.Policy:
  """The policy of a case, with the LoRA and user weights that it has there."""
  kind, weights, place = CASES[name, case]
  lora = section(arrays, f"{case}/lora")
  targets = {key.split(".")[-2] for key in lora}
  lm = language_model(arrays, targets)
  users = {
    key: jnp.asarray(value)
    for key, value in section(arrays, f"{case}/users").items()
  }
  if kind == "individual":
    rows, tokens, width = users["offsets"].shape
    clusters = 1
  else:
    clusters, tokens, width = users["centers"].shape
    rows = users["weights"].shape[0]
  spec = user_model.UserConfig(kind, tokens, clusters, weights)
  made = nnx.eval_shape(
    lambda: user_model.make_user_model(
      spec, rows, jnp.zeros((rows * tokens, width)), nnx.Rngs(0)
    )
  )
  model = policy.Policy(lm, made, place)
  state = nnx.state(model, policy.trainable)
  flat = dict(nnx.to_flat_state(state))
  for path, variable in flat.items():
    if path[0] == "user_model":
      value = users[path[1]]
    else:
      names = loading.tensor_names(lm.arch, path[1:])
      parts = [lora[key].T for key in names]
      value = jnp.asarray(parts[0] if len(parts) == 1 else np.stack(parts))
    assert value.shape == variable.shape, path
    flat[path] = variable.replace(value)
  nnx.update(model, nnx.from_flat_state(list(flat.items())))
  return model


@functools.cache
def split_policy(name: str, case: str):
  """Definition, trained and frozen part of a case's policy."""
  made = make_policy(read(name), name, case)
  return nnx.split(made, policy.trainable, ...)


def named(arch, trainable: nnx.State) -> dict[str, np.ndarray]:
  """A trainable state, or its gradient, under the golden files' names."""
  found = {}
  for path, variable in nnx.to_flat_state(trainable):
    value = np.asarray(variable[...])
    if path[0] == "user_model":
      found[path[1]] = value
      continue
    names = loading.tensor_names(arch, path[1:])
    parts = [value] if len(names) == 1 else value
    found |= {key: part.T for key, part in zip(names, parts, strict=True)}
  return found


def objective(kind: str = "sigmoid") -> objective_lib.LossConfig:
  loss, smoothing = LOSSES[kind]
  return objective_lib.LossConfig(loss, BETA, ALPHA, smoothing)


@functools.cache
def golden_loss_and_gradients(name: str, case: str):
  return loss_and_gradients(read(name), name, case)


def loss_and_gradients(arrays, name, case):
  """Our sigmoid loss, metrics and gradients by the golden files' names."""
  model = make_policy(arrays, name, case)
  graphdef, trainable, frozen = nnx.split(model, policy.trainable, ...)
  examples = batch(arrays, case)
  scales = objective_lib.pair_scales(examples, objective())

  @jax.jit
  def run(trainable):
    def loss_of(trainable):
      merged = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.loss_and_metrics(
        merged, examples, objective(), scales, logits_chunk=45
      )

    return jax.value_and_grad(loss_of, has_aux=True)(trainable)

  (loss, metrics), gradients = run(trainable)
  return loss, metrics, named(model.lm.arch, gradients)


def all_losses(arrays, case) -> dict[str, float]:
  """Our loss of every kind, from the torch side's log-probabilities."""
  examples = batch(arrays, case)
  weights = losses.pair_weights(examples.response_mask, examples.weight)
  found = {}
  for label in LOSSES:
    chosen = objective(label)
    pairs = jnp.zeros_like(weights)
    for branch, weight in chosen.branches():
      ratios = losses.log_ratios(
        jnp.asarray(arrays[f"{case}/logps/{branch}"]), examples.reference_logps
      )
      pairs += weight * losses.LOSSES[chosen.kind](
        losses.differences(ratios), chosen.beta, chosen.label_smoothing
      )
    found[label] = float(jnp.sum(weights * pairs) / weights.sum())
  return found


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """`|ours - theirs|` over `|theirs|`, both norms of the whole array."""
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
