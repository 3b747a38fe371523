"""A plan as text and as JSON."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from pdpo_jax.planning import abstract, planner, topologies
from pdpo_jax.training import recipes

# Of the chips' peak, as good programs reach it.
_UTILISATION = 0.5


def describe(plan: planner.Plan) -> str:
  """What a device holds, what a step costs, and how long it takes at least."""
  return "\n".join(_lines(plan))


def _lines(plan: planner.Plan) -> Iterator[str]:
  shape, chip = plan.shape, plan.topology.chip
  mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
  yield f"{plan.topology.name}: {plan.topology.num_devices} devices ({mesh})"
  if plan.topology.num_devices > 1:
    sizes = plan.mesh.items()
    named = (f"--config.mesh.{axis}={size}" for axis, size in sizes if size > 1)
    yield f"To train on this mesh: {' '.join(named)}"
  yield (
    f"{shape.examples} examples a step, {plan.examples} a device at a time; "
    f"{shape.prompt} prompt tokens, {shape.responses} responses of "
    f"{shape.response}; {shape.user_rows:,} user rows"
  )
  if shape.turns > 1:
    yield (
      f"Dialogues of {shape.turns} examples, whose trunk is the prompt of the "
      "last"
    )
  yield "\nA device holds"
  for name, size in plan.memory.items():
    yield _row(name, size)
  yield _row("in all", plan.total)
  if chip:
    yield _row("and there are", chip.memory)
    verdict = "fits" if plan.fits else "does NOT fit"
    share = ""
    if plan.topology.platform == "gpu":
      share = f" with XLA_PYTHON_CLIENT_MEM_FRACTION={topologies.GPU_SHARE}"
    yield f"  It {verdict}{share}: {plan.total / chip.memory:.0%}."
  yield "\nA step"
  yield f"  {'products':<22}{plan.flops / 1e12:>12,.1f} TFLOPs"
  per_example = plan.flops / shape.examples
  yield f"  {'of an example':<22}{per_example / 1e12:>12,.2f} TFLOPs"
  if plan.received is not None:
    yield "\nA device receives in a step"
    for kind, size in sorted(plan.received.items()):
      yield _row(kind, size)
    yield _row("in all", sum(plan.received.values(), 0.0))
  if chip:
    yield "\nA step takes at least"
    yield from _times(plan)
  if plan.estimated:
    yield (
      "\nTemporaries, code and what is received are estimates: they are those "
      "of the compiler for CPUs, which takes more than the one for GPUs. With "
      "that one installed, they are its own: pip install 'jax[cuda13]'"
    )
  yield f"\nCompiled in {plan.seconds:.0f} s."


def _times(plan: planner.Plan) -> Iterator[str]:
  least = plan.seconds_of_products
  for share in (1.0, _UTILISATION):
    rate = plan.shape.examples * share / least
    label = f"products at {share:.0%}"
    yield f"  {label:<22}{least / share:>12.2f} s   {rate:,.1f} examples/s"
  if plan.seconds_of_links is not None:
    yield f"  {'links at 100%':<22}{plan.seconds_of_links:>12.2f} s"


def _row(name: str, size: float) -> str:
  unit, title = topologies.GIBIBYTE, "GiB"
  if size < unit / 10:
    unit, title = 2**20, "MiB"
  return f"  {name:<22}{size / unit:>12,.2f} {title}"


def advice(plan: planner.Plan, recipe: recipes.Recipe) -> str:
  """What to change where memory is short, or where there is plenty."""
  if not plan.fits:
    return "What would help: " + "; ".join(_savings(plan, recipe))
  chip = plan.topology.chip
  if chip and plan.total < chip.memory / 2 and recipe.base.remat == "full":
    return "There is room to compute less: --config.base.remat=dots"
  return ""


def _savings(plan: planner.Plan, recipe: recipes.Recipe) -> list[str]:
  """What makes a plan smaller, the cheapest first."""
  savings = []
  if plan.mesh["fsdp"] < plan.topology.num_devices and plan.mesh["tensor"] == 1:
    savings.append(
      f"--config.mesh.data=1 --config.mesh.fsdp={plan.topology.num_devices}"
    )
  if recipe.base.param_dtype == "float32":
    savings.append("--config.base.param_dtype=bfloat16")
  if recipe.base.remat != "full":
    savings.append("--config.base.remat=full")
  if plan.examples > 1:
    steps = next(
      steps
      for steps in range(plan.microbatches + 1, plan.shape.examples + 1)
      if plan.shape.examples % (steps * plan.shards) == 0
    )
    savings.append(f"--config.train.accumulation_steps={steps}")
  if plan.examples == 1:
    savings.append("a larger topology, or shorter prompts and responses")
  return savings


def describe_search(
  largest: planner.Plan | None,
  smaller: tuple[topologies.Topology, int] | None,
  plan: planner.Plan,
) -> str:
  """The largest batch that fits, and the smallest slice that should do."""
  lines = []
  if largest is None:
    lines.append("Not even one example a device fits.")
  else:
    lines.append(
      "Largest batch without accumulation: "
      f"{largest.examples * largest.shards} examples, {largest.examples} a "
      f"device ({largest.total / largest.topology.chip.memory:.0%} of the "
      "memory; compiled)."
    )
  if smaller is None:
    lines.append("No smaller topology should do.")
  else:
    topology, steps = smaller
    how = (
      "" if steps == 1 else f" with --config.train.accumulation_steps={steps}"
    )
    lines.append(
      f"Smallest topology that should do for {plan.shape.examples} examples: "
      f"{topology.name}{how} (estimated; --topology={topology.name} compiles "
      "it)."
    )
  return "\n".join(lines)


def _named_as_before(shape: abstract.Shape) -> dict[str, int]:
  """Fields by name; `--json` calls examples samples."""
  fields = dataclasses.asdict(shape)
  return {"samples": fields.pop("examples"), **fields}


def to_json(plan: planner.Plan) -> dict[str, Any]:
  """All figures; bytes and seconds."""
  return {
    "topology": plan.topology.name,
    "devices": plan.topology.num_devices,
    "mesh": plan.mesh,
    "shape": _named_as_before(plan.shape),
    "accumulation_steps": plan.microbatches,
    "samples_a_device": plan.examples,
    "memory": plan.memory | {"total": plan.total},
    "capacity": plan.topology.chip and plan.topology.chip.memory,
    "fits": plan.fits,
    "estimated": plan.estimated,
    "flops": plan.flops,
    "received": plan.received,
    "seconds_of_products": plan.seconds_of_products,
    "seconds_of_links": plan.seconds_of_links,
    "compile_seconds": plan.seconds,
  }
