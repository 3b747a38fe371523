"""Tunix's DPO as a contender of `benchmarks.training`; see there.

Imports nothing of this package's, so that the peers may have a Python of their
own.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params
from tunix.rl import common
from tunix.sft.dpo import dpo_trainer

from benchmarks import comparisons, side_by_side


def read_model(folder: str, dtype: str) -> llama.Llama3:
  """The model of a Hugging Face folder."""
  with open(f"{folder}/config.json") as file:
    fields = json.load(file)
  # Tunix rotates by its default base, whatever the model's is.
  llama.apply_rope = functools.partial(
    llama.apply_rope, rope_theta=fields["rope_theta"]
  )
  config = llama.ModelConfig(
    num_layers=fields["num_hidden_layers"],
    vocab_size=fields["vocab_size"],
    embed_dim=fields["hidden_size"],
    hidden_dim=fields["intermediate_size"],
    num_heads=fields["num_attention_heads"],
    head_dim=fields["head_dim"],
    num_kv_heads=fields["num_key_value_heads"],
    rope_theta=fields["rope_theta"],
    norm_eps=fields["rms_norm_eps"],
    weight_tying=fields["tie_word_embeddings"],
  )
  mesh = jax.make_mesh(
    (1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  return params.create_model_from_safe_tensors(
    folder, config, mesh, jnp.dtype(dtype)
  )


def make_pairs(
  file: str, pairs_at_once: int, model: llama.Llama3
) -> list[dpo_trainer.TrainExample]:
  """Every pair of every example, twice: what both branches would read.

  A row has as many tokens as one of ours, with tokens in the prefix's place.
  """
  rows = [
    (prompt, chosen, other)
    for _, prompt, (chosen, *rejected) in comparisons.read(file)
    for other in rejected
  ] * 2
  made = []
  for start in range(0, len(rows), pairs_at_once):
    prompts, *answers = map(
      np.stack, zip(*rows[start : start + pairs_at_once], strict=True)
    )
    answers = np.concatenate(answers)
    tokens = jnp.asarray(np.concatenate([np.tile(prompts, (2, 1)), answers], 1))
    mask = jnp.ones(tokens.shape, bool)
    example = dpo_trainer.TrainExample(
      input_ids=tokens,
      positions=common.build_positions_from_mask(mask),
      attention_mask=common.make_causal_attn_mask(mask),
      ref_chosen_logps=None,
      ref_rejected_logps=None,
      completion_mask=jnp.ones(answers.shape, bool),
      logits_to_keep=answers.shape[1],
    )
    chosen, rejected = dpo_trainer.compute_logps(
      model,
      example.input_ids,
      example.positions,
      example.attention_mask,
      example.logits_to_keep,
      example.completion_mask,
    )
    made.append(
      example.replace(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
    )
  return made


def main() -> None:
  turns = side_by_side.Turns()
  spec = json.loads(sys.argv[1])
  model = read_model(spec["weights"], spec["dtype"])
  pairs = make_pairs(spec["tokens"], spec["pairs_at_once"], model)
  names = "|".join(spec["lora"])
  lora = qwix.LoraProvider(module_path=f".*({names})", rank=8, alpha=16.0)
  trainer = dpo_trainer.DPOTrainer(
    qwix.apply_lora_to_model(
      model, lora, rngs=nnx.Rngs(0), **model.get_model_input()
    ),
    None,
    optax.adamw(5e-5),
    dpo_trainer.DPOTrainingConfig(
      beta=0.1,
      max_steps=10_000,
      eval_every_n_steps=10_000,
      gradient_accumulation_steps=len(pairs),
    ),
  )
  step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
  reference = pairs[0]
  turns.ready(
    versions=side_by_side.versions("google-tunix", "qwix", "jax", "flax"),
    reference=[
      float(reference.ref_chosen_logps[0]),
      float(reference.ref_rejected_logps[0]),
    ],
  )
  while True:
    turns.wait()
    for pair in pairs:
      loss, _, _ = step(pair)
    turns.report(loss=float(loss))


if __name__ == "__main__":
  main()
