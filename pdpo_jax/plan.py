r"""Tells what a training needs of devices that are not there.

  python -m pdpo_jax.plan --config=configs/prism.py --topology=v5e-16 \
    --config.train.accumulation_steps=1

Compiles the run's own train step on any machine, without weights or data, and
prints what a device holds, whether it fits, what is computed and sent, and how
long that takes at least. For a TPU slice that takes the compiler of `libtpu`
(`pip install libtpu`), for GPUs such as `h100-8` that of JAX for CUDA
(`pip install 'jax[cuda13]'`), without which their temporaries are estimates.

Of the base only sizes are needed: those of `base.path`, where it is a local
folder, else those that its name tells or `--arch` names. Of the data only the
shape of a batch: the longest that the config allows, or what the flags below
say. `--largest` also looks for the largest batch that fits and for a smaller
topology, and compiles three to five times more, which takes minutes each.
"""

import dataclasses
import json
import pathlib

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.planning import abstract, planner, report, topologies
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import earlier
from pdpo_jax.training import branch_batches, recipes
from pdpo_jax.weights import hf_safetensors

_CONFIG = command_line.config_flag()
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "What to plan for: v5e-16, v5p-8, h100-8, cpu-8, …"
)
_ARCH = flags.DEFINE_string(
  "arch", None, "The base's architecture, where base.path does not tell it."
)
_PROMPT = flags.DEFINE_integer(
  "prompt_tokens", None, "P; data.max_prompt_tokens without.", lower_bound=1
)
_RESPONSE = flags.DEFINE_integer(
  "response_tokens", None, "R; data.max_response_tokens without.", lower_bound=1
)
_RESPONSES = flags.DEFINE_integer(
  "responses", None, "N, of an example.", lower_bound=2
)
_TURNS = flags.DEFINE_integer(
  "turns",
  1,
  "Examples of a dialogue, which share the prompt of the last as a trunk.",
  lower_bound=1,
)
_USERS = flags.DEFINE_integer(
  "users",
  None,
  "Known users, each a row of the table; with train.start_from, those of the "
  "earlier run as well.",
  lower_bound=1,
)
_LARGEST = flags.DEFINE_bool(
  "largest", False, "Also find the largest batch, and a smaller topology."
)
_JSON = flags.DEFINE_string("json", None, "File that gets the figures.")

# People of PRISM, and responses of an example that has all of a turn.
_PRISM_USERS, _FOUR_RESPONSES = 1396, 4


def architecture(path: str, name: str | None) -> policy_lib.Architecture:
  """The sizes of a base.

  Args:
    path: `base.path`.
    name: of a preset, which goes before; None for none.

  Raises:
    ValueError: if they cannot be told, or there is no such preset.
  """
  presets = policy_lib.PRESETS
  if name:
    if name not in presets:
      raise ValueError(f"--arch {name!r} is not one of {', '.join(presets)}")
    return presets[name]
  file = pathlib.Path(path).expanduser() / "config.json"
  if path and file.is_file():
    return hf_safetensors.read_architecture(file.parent)
  plain = _plain(path)
  named = [name for name in presets if _plain(name) in plain]
  if not named:
    raise ValueError(
      f"base.path {path!r} is no local folder, and its name does not tell its "
      f"architecture; add --arch=, one of {', '.join(presets)}"
    )
  return presets[max(named, key=len)]


def _plain(name: str) -> str:
  return "".join(letter for letter in name.lower() if letter.isalnum())


def batch_shape(
  config: config_lib.Config,
  *,
  users: int | None = None,
  prompt: int | None = None,
  responses: int | None = None,
  response: int | None = None,
  turns: int = 1,
) -> abstract.Shape:
  """The longest batch of the config; what is given goes before.

  Args:
    config: of the run.
    users: known ones.
    prompt: P, in tokens.
    responses: N.
    response: R, in tokens.
    turns: examples of a dialogue.

  Raises:
    ValueError: if nobody knows how many users there are, or turns of a
      dialogue share no trunk.
  """
  data = config.data
  users = users or {
    "prism": _PRISM_USERS,
    "tldr": data.tldr.num_workers,
    "synthetic": data.synthetic.num_workers,
    "ratings": data.ratings.num_users or None,
  }.get(data.source)
  several = data.source == "community_alignment" or (
    data.source == "prism" and data.prism.rejected == "all"
  )
  if users is None:
    raise ValueError(
      f"data.source {data.source!r} does not tell how many users there are; "
      "add --users=N"
    )
  reason = branch_batches.why_separate(config.recipe)
  most = config.train.batch_size // config.train.accumulation_steps
  if turns > 1 and reason:
    raise ValueError(
      f"--turns {turns} share no trunk, as {reason}; leave the flag out"
    )
  if turns > most:
    raise ValueError(
      f"--turns {turns} are more than the {most} examples of a microbatch; "
      "give fewer, or lower train.accumulation_steps"
    )
  return abstract.Shape(
    examples=config.train.batch_size,
    prompt=batching.round_up(
      prompt or data.max_prompt_tokens,
      batching.MULTIPLE,
      config.user.prefix_length,
    ),
    responses=responses or (_FOUR_RESPONSES if several else 2),
    response=batching.round_up(
      response or data.max_response_tokens, batching.MULTIPLE
    ),
    user_rows=users + 1,
    bare_prompt=config.recipe.learns_generic
    and not config.loss.generic_sees_text
    and config.loss.mixing == "sample",
    turns=turns,
  )


def make_plans(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  shape: abstract.Shape,
  topology: topologies.Topology,
) -> dict[str, planner.Plan | None]:
  """Plans and prints."""
  devices = planner.devices_of(topology)

  def compile_shape(shape, microbatches):
    train = dataclasses.replace(recipe.train, accumulation_steps=microbatches)
    return planner.make_plan(
      dataclasses.replace(recipe, train=train), arch, shape, topology, devices
    )

  plan = compile_shape(shape, recipe.train.accumulation_steps)
  print(report.describe(plan))
  advised = report.advice(plan, recipe)
  if advised:
    print(advised)
  if not _LARGEST.value:
    return {"plan": plan}
  if topology.chip is None:
    raise ValueError(
      f"--largest needs a device's memory, which topology {topology.name!r} "
      "does not say; choose a TPU slice or a GPU"
    )

  def compile_examples(examples):
    whole = dataclasses.replace(shape, examples=examples * plan.shards)
    return compile_shape(whole, 1)

  first = plan if plan.microbatches == 1 else compile_examples(plan.examples)
  largest, growth = planner.find_largest(compile_examples, first)
  smaller = planner.find_smaller(recipe, arch, plan, growth)
  print("\n" + report.describe_search(largest, smaller, plan))
  return {"plan": plan, "largest": largest}


def main() -> None:
  config = _CONFIG.value
  for name, value in (("config", config), ("topology", _TOPOLOGY.value)):
    if value is None:
      raise ValueError(
        f"--{name} is missing; e.g. python -m pdpo_jax.plan "
        "--config=configs/prism.py --topology=v5e-16 "
        "--config.train.accumulation_steps=1"
      )
  config_lib.validate(config)
  if not config.source_path and not _ARCH.value:
    config = earlier.resolve(config)
  topology = topologies.parse(_TOPOLOGY.value)
  arch = architecture(config.source_path, _ARCH.value)
  mesh = planner.choose_mesh(config.mesh, topology)
  config = dataclasses.replace(config, mesh=mesh)
  shape = batch_shape(
    config,
    users=_USERS.value,
    prompt=_PROMPT.value,
    responses=_RESPONSES.value,
    response=_RESPONSE.value,
    turns=_TURNS.value,
  )
  plans = make_plans(config.recipe, arch, shape, topology)
  if _JSON.value:
    figures = {
      name: plan and report.to_json(plan) for name, plan in plans.items()
    }
    pathlib.Path(_JSON.value).expanduser().write_text(
      json.dumps(figures, indent=2) + "\n"
    )


if __name__ == "__main__":
  command_line.run(main)
