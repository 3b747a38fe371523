r"""Counted FLOPs of a P-DPO example, beside what the paper's code does.

  python -m benchmarks.flops

Traces train steps at full size, without weights, and counts the products in
them (`pdpo_jax.planning.flops`). Three ways to train on one example (a user, a
prompt, a chosen and a rejected response):

- ours: both branches with the prompt shared by the responses, logits of
  responses alone; the reference's log-probabilities are computed once a run;
- the released code's: four rows of prompt and response through the policy
  (chosen and rejected, as the user and as the generic user) and four through
  the reference at each step, logits at every position;
- the least that our layout needs, by arithmetic (`work.least_work`).

An epoch of dialogues (`benchmarks/dialogues.py`) is counted besides, by
arithmetic: turns that share a trunk, a row an example, a row a response, and
the released code's rows, which are two for each pair. Prompts are cut as in the
paper, and hardly ever, as `configs/prism.py` does.

Rematerialisation is off in all. Attention is counted as XLA's plain one does,
all pairs of positions in ours and in the released code's, and only the visible
pairs in the minimum.

Hardware: any CPU; half a minute.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
from absl import app
from flax import nnx

from benchmarks import dialogues, naive, side_by_side, work
from configs import prism, tldr
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.planning import abstract, flops
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.training import pdpo
from pdpo_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Case:
  """A base and a kind of example; P, N and R as in `structs`."""

  name: str
  config: config_lib.Config
  arch: policy_lib.Architecture
  prompt: int
  responses: int
  response: int


def cases() -> list[Case]:
  """The paper's two experiments at full size."""
  found = []
  for name, module, preset, sizes in (
    ("Llama-3-8B, PRISM-like", prism, "llama-3-8b", (470, 2, 300)),
    ("GPT-J-6B, TL;DR-like", tldr, "gptj-6b", (512, 2, 50)),
  ):
    config = module.get_config()
    config.base.remat = "none"
    config.base.attention = "xla"
    config.lora.dropout = 0.0
    config.train.batch_size = 1
    config.train.accumulation_steps = 1
    found.append(Case(name, config, policy_lib.PRESETS[preset], *sizes))
  return found


def ours(case: Case) -> int:
  """FLOPs of a step of one example."""
  _, traced = abstract.trace(case.config.recipe, case.arch, _shape(case))
  return flops.count(traced)


def reference(case: Case) -> int:
  """FLOPs of the reference's log-probabilities of one example."""
  policy = _base(case)
  score = step_lib.make_score(policy.graphdef, case.config.train.logits_chunk)
  batch = abstract.make_batch(_shape(case))
  return flops.count(score.trace(policy.trainable, policy.frozen, batch))


def released(case: Case) -> int:
  """FLOPs of a step of one pair, laid out as in the released code."""
  policy, base = (
    abstract.make_policy(case.config.recipe, case.arch, 2),
    _base(case),
  )
  objective = pdpo.make_objective(case.config.recipe)

  def loss_of(trainable, frozen, batch):
    # The reference reads each pair for each branch, without a prefix.
    _, responses = naive.pairs_of(batch)
    responses = jnp.tile(responses, 2)
    logps = naive.sequence_logps(
      nnx.merge(base.graphdef, base.trainable, frozen),
      jnp.repeat(batch.prompt, 4, 0),
      batch.responses[0, responses],
      batch.response_mask[0, responses],
      jnp.zeros((4, 0, case.arch.width)),
    )
    logps = jax.lax.stop_gradient(logps).reshape(2, 2).mean(0)
    batch = dataclasses.replace(batch, reference_logps=logps[None])
    merged = nnx.merge(policy.graphdef, trainable, frozen)
    return naive.loss(merged, batch, objective)

  batch = abstract.make_batch(_shape(case))
  step = jax.jit(jax.grad(loss_of))
  return flops.count(step.trace(policy.trainable, policy.frozen, batch))


def minimum(case: Case) -> float:
  """The least FLOPs of an example in the shared-prompt layout."""
  return work.least_work(
    case.arch,
    case.config.user.num_tokens + case.prompt,
    case.responses,
    case.response,
    case.config.lora.rank,
  ).total


def measure(case: Case) -> dict[str, float]:
  """FLOPs of an example, by what is counted."""
  step, cached = ours(case), reference(case)
  return {
    "minimum": minimum(case),
    "ours": step,
    "reference": cached,
    "ours_with_reference": step + cached / case.config.train.epochs,
    "released": released(case),
  }


def dialogue_rows(
  count: int = dialogues.DIALOGUES, limits: tuple[int, ...] = (500, 2000)
) -> list[dict]:
  """Positions and FLOPs of an epoch of dialogues, by limit and layout."""
  config = prism.get_config()
  arch, prefix = policy_lib.PRESETS["llama-3-8b"], config.user.num_tokens
  found = []
  for limit in limits:
    examples = dialogues.draw(count, limit)
    shared, alone = (
      batching.PreferenceBatches(
        examples,
        None,
        config.train.batch_size,
        0,
        prefix,
        max_shapes=config.data.max_shapes,
        microbatches=2,
        share_trunks=share_trunks,
      )
      for share_trunks in (True, False)
    )
    padding = {
      "trunks": shared.padding_share,
      "separate rows": alone.padding_share,
    }
    runs = dialogues.runs(examples, shared, prefix)
    ours = runs["trunks"].flops(arch, config.lora.rank)
    for name, run in runs.items():
      flops = run.flops(arch, config.lora.rank)
      found.append(
        {
          "limit": limit,
          "comparisons": len(examples),
          "rows": len(shared.trunks),
          "layout": name,
          "positions": run.positions,
          "positions_ratio": runs["trunks"].positions / run.positions,
          "flops": flops,
          "flops_ratio": ours / flops,
          "padding": padding.get(name),
        }
      )
  return found


def _print_dialogues(rows):
  for limit in dict.fromkeys(row["limit"] for row in rows):
    own = [row for row in rows if row["limit"] == limit]
    print(
      f"\nAn epoch of {own[0]['comparisons']:,} comparisons in "
      f"{dialogues.DIALOGUES:,} dialogues, prompts of at most {limit} tokens, "
      f"{own[0]['rows']:,} trunks; Llama-3-8B, both branches"
    )
    print(
      side_by_side.table(
        ("", "10^6 positions", "ratio", "PFLOPs", "ratio", "padding"),
        [
          (
            row["layout"],
            f"{row['positions'] / 1e6:.1f}",
            f"{row['positions_ratio']:.3f}",
            f"{row['flops'] / 1e15:,.0f}",
            f"{row['flops_ratio']:.3f}",
            "" if row["padding"] is None else f"{row['padding']:.1%}",
          )
          for row in own
        ],
      )
    )


def _shape(case):
  return abstract.Shape(1, case.prompt, case.responses, case.response, 2)


def _base(case):
  """The base alone, as a policy."""
  config = dataclasses.replace(
    case.config,
    user=dataclasses.replace(case.config.user, kind="none"),
    lora=dataclasses.replace(case.config.lora, targets=()),
  )
  return abstract.make_policy(config.recipe, case.arch, 1)


def main(argv) -> None:
  del argv
  jax.config.update("jax_platforms", "cpu")
  rows = {case.name: measure(case) for case in cases()}
  print(f"{'TFLOPs an example':<34}" + "".join(f"{n:>26}" for n in rows))
  for title, key in (
    ("minimum of the layout", "minimum"),
    ("ours", "ours"),
    ("ours, and the reference's share", "ours_with_reference"),
    ("the released code's", "released"),
  ):
    values = "".join(f"{row[key] / 1e12:>26.2f}" for row in rows.values())
    print(f"{title:<34}{values}")
  for title, over, under in (
    ("ours / minimum", "ours", "minimum"),
    ("released / ours", "released", "ours"),
    ("released / ours with reference", "released", "ours_with_reference"),
  ):
    values = "".join(f"{r[over] / r[under]:>26.3f}" for r in rows.values())
    print(f"{title:<34}{values}")
  shared = dialogue_rows()
  _print_dialogues(shared)
  file = pathlib.Path(__file__).with_suffix(".json")
  found = {
    "versions": run_folder.versions(),
    "rows": rows,
    "dialogues": shared,
  }
  file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
  app.run(main)
