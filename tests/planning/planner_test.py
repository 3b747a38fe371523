"""Plans beside what really lies on eight simulated devices.

  python -m tests.planning.planner_test

checks what needs eight devices, which a process has from its start or not at
all; a test here runs that.
"""

import dataclasses
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.models import llama
from pdpo_jax.planning import abstract, gpus, planner, report, topologies
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import optimizer, policies, sharding
from pdpo_jax.weights import base as base_lib
from tests import tiny

ROOT = pathlib.Path(__file__).parent.parent.parent
ARCH = llama.Architecture(256, 32, 3, 4, 2, 8, 40)
SHAPE = abstract.Shape(16, 13, 2, 8, 5)
SLICE = topologies.parse("v5e-16")


def fake_plan(examples, fixed=4.0, per_example=1.5, capacity=15.75):
  """Of a slice whose memory grows evenly with a device's examples, in GiB."""
  memory = {"base": 1.0, "lora": 0.0, "users": 0.0, "optimizer": 0.5}
  memory |= {
    "batch": 0.25 * examples,
    "temporaries": fixed + per_example * examples,
  }
  size = topologies.GIBIBYTE
  chip = dataclasses.replace(SLICE.chip, memory=capacity * size)
  return planner.Plan(
    dataclasses.replace(SLICE, chip=chip),
    {"data": 1, "fsdp": 16, "tensor": 1},
    dataclasses.replace(SHAPE, examples=16 * examples),
    1,
    {name: part * size for name, part in memory.items()},
    10**15,
    {"all-gather": 2e9},
    1.0,
  )


def test_the_largest_batch_is_found_in_three_compilations():
  compiled = []

  def compile_examples(examples):
    compiled.append(examples)
    return fake_plan(examples)

  largest, growth = planner.find_largest(compile_examples, fake_plan(2))
  # 1.5 + 4 + 1.75 n <= 15.75
  assert largest.examples == 5 and largest.fits
  assert compiled == [1, 5]
  np.testing.assert_allclose(growth.fixed, 4 * topologies.GIBIBYTE)
  np.testing.assert_allclose(growth.per_example, 1.75 * topologies.GIBIBYTE)


def test_a_promise_that_does_not_hold_is_lowered():
  def compile_examples(examples):
    return fake_plan(examples, per_example=1.5 if examples < 4 else 2.2)

  largest, _ = planner.find_largest(compile_examples, fake_plan(2))
  # 1.5 + 4 + 2.45 n <= 15.75
  assert largest.examples == 4


def test_room_that_a_promise_leaves_is_used():
  def compile_examples(examples):
    return fake_plan(examples, per_example=1.5 if examples < 3 else 0.9)

  largest, _ = planner.find_largest(compile_examples, fake_plan(2))
  # 1.5 + 4 + 1.15 n <= 15.75
  assert largest.examples == 8


def test_memory_that_does_not_grow_promises_nothing():
  compiled = []

  def compile_examples(examples):
    compiled.append(examples)
    return fake_plan(examples, per_example=-0.5)

  largest, _ = planner.find_largest(
    compile_examples, fake_plan(2, per_example=-0.5)
  )
  assert largest.examples == 2 and compiled == [1]


def test_where_no_example_fits_there_is_no_largest_batch():
  largest, _ = planner.find_largest(
    lambda examples: fake_plan(examples, capacity=5.0),
    fake_plan(2, capacity=5.0),
  )
  assert largest is None
  assert "Not even one" in report.describe_search(None, None, fake_plan(2))


def test_a_smaller_slice_may_need_microbatches():
  plan = fake_plan(2)
  growth = planner.Growth(8.0 * topologies.GIBIBYTE, topologies.GIBIBYTE / 4)
  found = planner.find_smaller(config_lib.Config().recipe, ARCH, plan, growth)
  assert found[0].name == "v5e-1" and found[1] == 2
  too_much = planner.Growth(20.0 * topologies.GIBIBYTE, 0.0)
  config = config_lib.Config()
  assert planner.find_smaller(config.recipe, ARCH, plan, too_much) is None


def test_a_plan_says_how_long_a_step_takes_at_least():
  plan = fake_plan(2)
  assert plan.seconds_of_products == 10**15 / 16 / 197e12
  assert plan.seconds_of_links == 2e9 / 200e9
  text = report.describe(plan)
  assert "It fits: 57%" in text
  assert "To train on this mesh: --config.mesh.fsdp=16\n" in text
  assert "32 examples a step, 2 a device at a time" in text


def test_what_does_not_fit_comes_with_what_would_help():
  config = config_lib.Config()
  plan = fake_plan(6)
  assert not plan.fits
  assert "does NOT fit" in report.describe(plan)
  advised = report.advice(plan, config.recipe)
  assert "--config.base.param_dtype=bfloat16" in advised
  assert "--config.base.remat=full" in advised
  assert "--config.train.accumulation_steps=2" in advised
  mesh = {"data": 16, "fsdp": 1, "tensor": 1}
  advised = report.advice(dataclasses.replace(plan, mesh=mesh), config.recipe)
  assert advised.startswith(
    "What would help: --config.mesh.data=1 --config.mesh.fsdp=16;"
  )


def test_where_there_is_room_less_need_be_computed():
  config = config_lib.Config()
  config.base.remat = "full"
  assert "--config.base.remat=dots" in report.advice(
    fake_plan(1), config.recipe
  )
  assert not report.advice(fake_plan(3), config.recipe)


def test_where_the_compiler_stopped_a_plan_does_not_fit():
  plan = dataclasses.replace(fake_plan(1), received=None)
  assert not plan.fits
  assert plan.seconds_of_links is None


def test_all_devices_share_the_weights_unless_the_config_says_otherwise():
  chosen = planner.choose_mesh(sharding.MeshConfig(), SLICE)
  assert (chosen.data, chosen.fsdp, chosen.tensor) == (1, 16, 1)
  own = sharding.MeshConfig(data=4, fsdp=4)
  assert planner.choose_mesh(own, SLICE) == own


def test_a_compiler_that_is_missing_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="pip install libtpu"):
    planner.devices_of(SLICE)


def test_a_plan_for_gpus_that_cpus_compile_is_an_estimate():
  topology, devices = topologies.parse("h100-1"), jax.devices()[:1]
  config = config_lib.Config()
  config.base.attention = "cudnn"  # Which CPUs do not have.
  plan = planner.make_plan(config.recipe, ARCH, SHAPE, topology, devices)
  assert plan.estimated
  assert "pip install 'jax[cuda13]'" in report.describe(plan)


def test_a_plan_for_cpus_is_their_own():
  topology, devices = topologies.parse("cpu-1"), jax.devices()[:1]
  plan = planner.make_plan(
    config_lib.Config().recipe, ARCH, SHAPE, topology, devices
  )
  assert not plan.estimated
  assert "estimates" not in report.describe(plan)


def test_a_planned_batch_of_dialogues_has_the_arrays_of_a_real_one():
  shape = abstract.Shape(12, 29, 3, 4, 9, turns=3)
  planned = abstract.make_batch(shape, groups=2)
  examples = []
  for user in (1, 2, 3, 4):
    history = np.full(3, user, np.int32)
    for length in (5, 17, 29):
      fill = np.full(length - len(history), 50 + user, np.int32)
      prompt = np.concatenate([history, fill])
      responses = tuple(np.full(4, n, np.int32) for n in range(3))
      examples.append(structs.TokenizedExample(user, prompt, prompt, responses))
      history = np.concatenate([prompt, responses[0]])
  real = batching.PreferenceBatches(
    examples,
    None,
    12,
    0,
    0,
    pad_multiple=1,
    microbatches=2,
    share_trunks=True,
  ).batch(0)
  assert jax.tree.structure(planned) == jax.tree.structure(real)
  for ours, theirs in zip(
    jax.tree.leaves(planned), jax.tree.leaves(real), strict=True
  ):
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


def chosen_attention(topology, arch=ARCH, *, estimated=False, **base):
  return planner.attention_of(
    base_lib.BaseConfig(**base), arch, topologies.parse(topology), estimated
  )


def test_gpus_that_are_not_there_choose_attention_as_those_that_are():
  assert chosen_attention("h100-8", dtype="bfloat16") == "cudnn"
  assert chosen_attention("h100-8", dtype="float32") == "xla"
  wide = dataclasses.replace(ARCH, head_size=256)
  assert chosen_attention("h100-8", wide, dtype="bfloat16") == "xla"
  own = chosen_attention("a100-1", dtype="bfloat16", attention="xla")
  assert own == "xla"
  # Elsewhere the kernel itself does.
  assert chosen_attention("v5e-4", dtype="bfloat16") == "auto"


def test_a_kernel_that_a_gpu_has_not_is_an_error_of_its_plan():
  with pytest.raises(ValueError, match="needs base\\.dtype 'bfloat16'"):
    chosen_attention("h100-8", dtype="float32", attention="cudnn")
  wide = dataclasses.replace(ARCH, head_size=256)
  with pytest.raises(ValueError, match="up to 128 on this GPU, not of 256"):
    chosen_attention("a100-8", wide, dtype="bfloat16", attention="cudnn")


def test_a_table_on_the_host_takes_the_room_of_a_batch():
  config = config_lib.Config()
  config.lora.dropout = 0.0
  config.train.sparse_users = config.train.users_on_host = True
  shape = dataclasses.replace(SHAPE, examples=2, user_rows=10**6)
  topology, devices = topologies.parse("cpu-1"), jax.devices()[:1]
  plan = planner.make_plan(config.recipe, ARCH, shape, topology, devices)
  prefix = config.user.num_tokens * ARCH.width * 4
  # Two users and the generic one have a row each, besides the common prefix.
  assert plan.memory["users"] == (3 + 1) * prefix


def run(*arguments, **env):
  return subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


@pytest.mark.slow
def test_a_plan_is_what_lies_on_eight_devices():
  done = run("tests.planning.planner_test", JAX_NUM_CPU_DEVICES="8")
  assert done.returncode == 0, done.stderr[-4000:]
  assert done.stdout.splitlines()[-1] == "all is well"


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_a_step_compiles_for_a_slice_of_four_tpus():
  done = run(
    "pdpo_jax.plan",
    "--config=configs/prism.py",
    "--topology=v5e-4",
    "--arch=llama-tiny",
    "--prompt_tokens=118",
    "--responses=2",
    "--response_tokens=128",
    "--users=7",
    "--config.lora.dropout=0",
    "--config.train.batch_size=4",
    "--config.train.accumulation_steps=1",
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert "v5e-4: 4 devices (data 1, fsdp 4, tensor 1)" in done.stdout
  assert "It fits" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
  not gpus.installed(), reason="JAX's plugin for CUDA is not installed"
)
@pytest.mark.parametrize("name", ["h100-2", "l4-1"])
def test_a_step_compiles_for_gpus(name):
  done = run(
    "pdpo_jax.plan",
    "--config=configs/prism.py",
    f"--topology={name}",
    "--arch=llama-tiny",
    "--config.base.dtype=float32",
    "--config.base.param_dtype=float32",
    "--prompt_tokens=118",
    "--responses=2",
    "--response_tokens=128",
    "--users=7",
    "--config.train.batch_size=4",
    "--config.train.accumulation_steps=1",
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert "It fits" in done.stdout and "estimates" not in done.stdout


def _config(folder: pathlib.Path) -> config_lib.Config:
  config = tiny.tiny_config(folder)
  config.train.batch_size = SHAPE.examples
  config.mesh = sharding.MeshConfig(2, 2, 2)
  return config


def _check_eight(folder: pathlib.Path) -> None:
  """Places and bytes of a real state, and of its plan."""
  topology = topologies.parse("cpu-8")
  devices = planner.devices_of(topology)
  config = _config(folder)
  base, users, batches, *_ = tiny.tiny_parts(config)
  base_lib.write_base(folder / "base", base)
  mesh = sharding.make_mesh(config.mesh, devices)
  base = base_lib.read_base(
    str(folder / "base"),
    config.base,
    sharding.of_base(mesh),
  )
  policy = policies.make_policy(config.recipe, base, users.num_rows)
  transformation = optimizer.make_optimizer(config.train, 10)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32),
    policy.trainable,
    transformation.init(policy.trainable),
  )
  state = jax.device_put(state, sharding.pinned(state))
  batch = sharding.batch_placer(mesh)(batches.batch(0))
  rows, count, size = batch.responses.shape
  shape = abstract.Shape(
    rows, batch.prompt.shape[1], count, size, users.num_rows
  )
  planned = abstract.make_arguments(
    config.recipe,
    abstract.make_policy(config.recipe, base.lm.arch, users.num_rows),
    shape,
    mesh,
  )
  real = abstract.Arguments(state, policy.frozen, batch)
  _check_alike(planned, real)
  print("a plan's arrays lie where the real ones do")
  plan = planner.make_plan(
    config.recipe, base.lm.arch, shape, topology, devices
  )
  held = sum(_bytes_on(leaf, devices[0]) for leaf in _leaves(real))
  named = ("base", "lora", "users", "optimizer", "batch")
  assert sum(plan.memory[name] for name in named) == held
  assert plan.memory["temporaries"] > 0 and plan.flops > 0
  # Each device needs the other's half of what `fsdp` splits.
  assert sum(plan.received.values()) > plan.memory["base"] / 2
  with pytest.raises(ValueError, match="leaves 6 examples, which the 4 dev"):
    odd = dataclasses.replace(shape, examples=6)
    planner.make_plan(config.recipe, base.lm.arch, odd, topology, devices)
  with pytest.raises(ValueError, match="make 6 devices, and there are 8"):
    config.mesh = sharding.MeshConfig(2, 3, 1)
    planner.make_plan(config.recipe, base.lm.arch, shape, topology, devices)
  _check_activations_stay(devices)
  print("activations stay where they are")


def _check_activations_stay(devices) -> None:
  """What is sent does not grow with the batch: weights, and no activations.

  Not so where XLA infers from the token table how activations are split.
  """
  config = config_lib.Config()
  config.lora.dropout = 0.0
  config.mesh = sharding.MeshConfig(1, 8, 1)
  topology = topologies.parse("cpu-8")
  received = []
  for examples in (16, 64):
    shape = dataclasses.replace(SHAPE, examples=examples)
    plan = planner.make_plan(config.recipe, ARCH, shape, topology, devices)
    received.append(sum(plan.received.values()))
  activations = 64 * 2 * (10 + 13 + 2 * 8) * ARCH.width * 4 / 8
  grown = received[1] - received[0]
  # Embeddings are looked up in a table that is split by width, and back.
  assert grown < 2 * activations, (grown, activations)


def _leaves(arguments):
  return jax.tree.leaves((arguments.state, arguments.frozen, arguments.batch))


def _bytes_on(array, device):
  return sum(
    shard.data.nbytes
    for shard in array.addressable_shards
    if shard.device == device
  )


def _check_alike(planned, real):
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(
      (planned.state, planned.frozen, planned.batch)
    ),
    jax.tree_util.tree_leaves_with_path((real.state, real.frozen, real.batch)),
    strict=True,
  )
  for (path, shape), (other, array) in pairs:
    assert path == other
    assert (shape.shape, shape.dtype) == (array.shape, array.dtype), path
    assert shape.sharding.is_equivalent_to(array.sharding, array.ndim), path


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as temporary:
    _check_eight(pathlib.Path(temporary))
  print("all is well")
