"""Meshes of eight simulated devices, beside a single one.

  python -m tests.training.sharding_test

checks what needs eight devices, which a process has from its start or not at
all; the tests here run that.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.data import batching
from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import gptj, layers, llama, user_model
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import (
  branch_batches,
  checkpoint,
  checkpoint_items,
  optimizer,
  pdpo,
  policies,
  scoring,
  sharding,
)
from pdpo_jax.weights import base as base_lib
from tests import dialogues, tiny

ROOT = pathlib.Path(__file__).parent.parent.parent
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2))

ARCHITECTURES = {
  "llama": (llama.Llama, llama.Architecture(256, 24, 2, 4, 2, 6, 40)),
  "gptj": (gptj.GPTJ, gptj.Architecture(256, 24, 2, 2, 96, 8, 64)),
}

EMBEDDINGS = {"llama": ("embed_tokens",), "gptj": ("wte",)}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_each_parameter_has_one_rule(name, kind):
  make, arch = ARCHITECTURES[name]
  lora = layers.LoraConfig((*arch.linears, *EMBEDDINGS[name]), 4, 8.0)
  lm = nnx.eval_shape(lambda: make(arch, lora=lora, rngs=nnx.Rngs(0)))
  spec = user_model.UserConfig(kind=kind)
  users = nnx.eval_shape(
    lambda: user_model.make_user_model(
      spec, 9, jax.numpy.zeros((256, 24)), nnx.Rngs(0)
    )
  )
  paths = [
    ".".join(map(str, path))
    for path, _ in nnx.to_flat_state(nnx.state(policy_lib.Policy(lm, users)))
  ]
  assert len(paths) > 15
  specs = {path: sharding.spec_of(path) for path in paths}
  assert any("tensor" in spec for spec in specs.values())


def test_a_parameter_without_a_rule_is_named():
  with pytest.raises(ValueError, match=r"lm\.h\.new has 0 sharding rules"):
    sharding.spec_of("lm.h.new")


def test_a_parameter_with_two_rules_is_named(monkeypatch):
  more = (*sharding.RULES, (r".*\.offsets", ()))
  monkeypatch.setattr(sharding, "RULES", more)
  with pytest.raises(ValueError, match="offsets has 2 sharding rules"):
    sharding.spec_of("user_model.offsets")


def test_logits_at_a_time_are_counted_by_device():
  mesh = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES)
  assert sharding.logits_chunk(0, None) == 128
  assert sharding.logits_chunk(7, None) == 7
  assert sharding.batch_shards(mesh) == 4


def test_one_device_has_no_mesh():
  assert sharding.make_mesh(sharding.MeshConfig()) is None


@pytest.mark.slow
def test_eight_devices_do_what_one_does():
  env = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
    + os.environ["XLA_FLAGS"],
    "JAX_PLATFORMS": "cpu",
  }
  done = subprocess.run(
    [sys.executable, "-m", "tests.training.sharding_test"],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert done.stdout.splitlines()[-1] == "all is well"


def _base(mesh, folder):
  return base_lib.read_base(
    str(folder), base_lib.BaseConfig(), sharding.of_base(mesh)
  )


def _train(config, base, data, folder):
  users, batches, heldout, dataset = data
  return pdpo.train(
    config.recipe, base, users, batches, heldout, dataset.train, folder
  )


def _metrics(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [line for line in text.splitlines() if '"loss"' in line]


def _losses(folder):
  return [json.loads(line)["loss"] for line in _metrics(folder)]


def _close(one, other, what):
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=what)


def _values(policy):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(policy.trainable)]


def _check_eight(folder: pathlib.Path) -> None:
  """Ten steps on each mesh, a checkpoint that moves, and wrong meshes."""
  assert jax.device_count() == 8
  config = tiny.tiny_config(folder / "run")
  config.data.synthetic.num_workers = 7  # eight rows, with the generic one
  config.data.synthetic.train_per_worker = 12
  config.train.epochs = 1
  config.train.batch_size = 8
  config.train.warmup_steps = 0
  config.train.checkpoint_every = 5
  base, *data = tiny.tiny_parts(config)
  base_lib.write_base(folder / "base", base)
  single = _train(config, _base(None, folder / "base"), data, folder / "one")
  losses = _losses(folder / "one")
  assert len(losses) >= 10 and losses[-1] != losses[0]
  scores = scoring.score_held_out(single, data[2], 128).log_ratios
  for sizes in MESHES:
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    name = "x".join(map(str, sizes))
    on_mesh = _base(mesh, folder / "base")
    policy = _train(config, on_mesh, data, folder / name)
    _close(_losses(folder / name), losses, f"losses on {name}")
    _close(_values(policy), _values(single), f"weights on {name}")
    found = scoring.score_held_out(policy, data[2], 128).log_ratios
    # Sums over a whole response, of a model that has learnt.
    np.testing.assert_allclose(found, scores, atol=1e-3)
    _check_places(policy, mesh)
    print(f"{name}: as on one device")
  _check_moments(config, policy, mesh)
  _check_accumulated(config, folder)
  _check_trunks(config, folder)
  _check_start(config, data, folder)
  # What one mesh saved goes on on another, as if it had not moved.
  half = folder / "2x2x2" / "checkpoints"
  with checkpoint.Checkpoints(half, 9) as saved:
    last = saved.steps[-1]
  shutil.rmtree(half / str(last))
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 8, 1))
  moved = _train(config, _base(mesh, folder / "base"), data, folder / "2x2x2")
  _close(_values(moved), _values(single), "moved to another mesh")
  print("a checkpoint moves between meshes")
  # A run is read on whatever devices there are, with any batch size.
  config.base.path = str(folder / "base")
  config.mesh = sharding.MeshConfig(3, 2, 1)
  base = run_lib.read_base(config, folder, reading=True)
  loaded, *_ = policies.load(config.recipe, base, folder / "2x2x2")
  _close(_values(loaded), _values(single), "read on other devices")
  for own, other in zip(_answers(loaded), _answers(single), strict=True):
    np.testing.assert_array_equal(own, other)
  _check_int8(folder)
  odd = dataclasses.replace(config.train, batch_size=6)
  config = dataclasses.replace(config, train=odd)
  split = tiny.tiny_split(config, base, data[0], "heldout")
  found = scoring.score_held_out(
    loaded,
    branch_batches.with_reference(
      config.recipe, base, split, config.cache_folder
    ),
    128,
  ).log_ratios
  np.testing.assert_allclose(found, scores, atol=1e-3)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  assert sharding.logits_chunk(0, mesh) == 4 * 128
  assert sharding.logits_chunk(7, mesh) == 28
  with pytest.raises(ValueError, match="make 6 devices, and there are 8"):
    sharding.make_mesh(sharding.MeshConfig(3, 2, 1))
  config.mesh = sharding.MeshConfig()
  config.train.batch_size = 12
  with pytest.raises(
    ValueError, match="leaves 12 examples, which the 8 devices"
  ):
    config.recipe.check_devices()
  config.train.batch_size, config.train.accumulation_steps = 32, 8
  with pytest.raises(ValueError, match="accumulation_steps=4"):
    config.recipe.check_devices()


def _check_accumulated(config, folder):
  """Batches packed for a mesh, in two microbatches, are as on one device."""
  train = dataclasses.replace(config.train, batch_size=16, accumulation_steps=2)
  config = dataclasses.replace(config, train=train)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  on_mesh = _base(mesh, folder / "base")
  _, *data = tiny.tiny_parts(config)
  split = tiny.tiny_split(config, on_mesh, data[0], "train")
  data[1] = branch_batches.with_reference(
    config.recipe, on_mesh, split, config.cache_folder
  )
  # Four devices share a batch of 16, and run it in two microbatches.
  assert {room.rows for room in data[1].rooms} == {2}
  found = []
  for base in (_base(None, folder / "base"), on_mesh):
    name = f"accumulated-{len(found)}"
    found.append(_values(_train(config, base, data, folder / name)))
  _close(*found, "two microbatches on a mesh")


def _check_trunks(config, folder):
  """Dialogues of several comparisons, in two microbatches, likewise."""
  train = dataclasses.replace(
    config.train,
    batch_size=16,
    accumulation_steps=2,
    warmup_steps=0,
    epochs=1,
  )
  # What is dropped depends on where a group's positions lie.
  lora = dataclasses.replace(config.lora, dropout=0.0)
  config = dataclasses.replace(config, train=train, lora=lora)
  users, *_, dataset = tiny.tiny_parts(config)[1:]
  examples = dialogues.make(0, count=18)
  reference = np.zeros((len(examples), 4), np.float32)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  found = []
  for devices, place in ((1, None), (4, mesh)):
    batches = batching.PreferenceBatches(
      examples,
      reference,
      16,
      0,
      config.user.num_tokens,
      with_bare_prompt=True,
      max_shapes=1,
      devices=devices,
      microbatches=2,
      share_trunks=True,
    )
    data = users, batches, None, dataset
    name = folder / f"trunks-{len(found)}"
    base = _base(place, folder / "base")
    found.append(_values(_train(config, base, data, name)))
    if place:  # What was stopped goes on as if it had not been.
      with checkpoint.Checkpoints(name / "checkpoints", 9) as saved:
        shutil.rmtree(name / "checkpoints" / str(saved.steps[-1]))
      again = _values(_train(config, base, data, name))
      for one, other in zip(found[-1], again, strict=True):
        np.testing.assert_array_equal(one, other)
  _close(*found, "dialogues on a mesh")


def _check_start(config, data, folder):
  """Users learn alone, on a mesh as on one device, from what there is."""
  users, *rest = data
  data = users.extended(users_lib.UserIndex(["new"])), *rest
  train = dataclasses.replace(
    config.train, start_from=str(folder), learn="users"
  )
  config = dataclasses.replace(config, train=train)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  found = []
  for place in (None, mesh):
    # Starts from `folder / "one"`.
    own = folder / f"later-{len(found)}" / "one"
    policy = _train(config, _base(place, folder / "base"), data, own)
    found.append(policy)
  _check_places(policy, mesh)
  _close(*map(_values, found), "users who learn alone")
  with checkpoint.Checkpoints(folder / "one" / "checkpoints") as saved:
    before = saved.load_as_saved(saved.steps[-1], ("lora", "users"))
  after = checkpoint_items.of_trainable(policy.trainable)
  for path, value in before["lora"].items():
    np.testing.assert_array_equal(value, np.asarray(after["lora"][path]))
  table = np.asarray(after["users"]["user_model.offsets"])
  changed = table[:8] != np.asarray(
    before["users"]["table"]["user_model.offsets"]
  )
  # All but the generic user, and the new one, who has no choices here.
  assert changed.any((1, 2)).tolist() == [False] + 7 * [True]
  assert table.shape[0] == 9 and not table[8].any()


def _answers(policy):
  """What users say to two prompts, greedily."""
  prompts = (np.arange(5, 11, dtype=np.int32), np.array([7, 9], np.int32))
  requests = [
    generate.Request(prompt, row) for prompt in prompts for row in (0, 3, 5)
  ]
  return generate.generate(
    policy.merge(),
    requests,
    sampling.AnswersConfig(max_new_tokens=9, temperature=0.0),
    stop_tokens=[],
    pad_id=0,
    batch_size=4,
  )


def _check_int8(folder) -> None:
  """A base is quantized on a mesh as on one device, scales and all."""
  mesh = sharding.make_mesh(sharding.MeshConfig(1, 4, 2))
  types = base_lib.BaseConfig(param_dtype="int8")
  path = str(folder / "base")
  divided = base_lib.read_base(path, types, sharding.of_base(mesh))
  whole = base_lib.read_base(path, types)
  kernels = 0
  for own, other in zip(
    jax.tree.leaves(divided.params), jax.tree.leaves(whole.params), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(own), np.asarray(other))
    kernels += own.dtype == np.int8 and not own.sharding.is_fully_replicated
  assert kernels == 6  # of GPT-J


def _check_places(policy, mesh) -> None:
  """Weights and users are split as the rules say."""
  flat = nnx.to_flat_state(nnx.merge_state(policy.trainable, policy.frozen))
  for path, variable in flat:
    array = variable.get_value()
    want = sharding.place_of(".".join(map(str, path)), array.shape, mesh)
    assert array.sharding.is_equivalent_to(want, array.ndim), path


def _check_moments(config, policy, mesh) -> None:
  """Adam's moments lie where their parameters do."""
  transformation = optimizer.make_optimizer(config.train, 10)
  state = transformation.init(policy.trainable)
  places = {
    (leaf.shape, str(leaf.sharding))
    for leaf in jax.tree.leaves(policy.trainable)
  }
  moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
  assert moments
  for leaf in moments:
    assert (leaf.shape, str(leaf.sharding)) in places, leaf.sharding


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as temporary:
    _check_eight(pathlib.Path(temporary))
  print("all is well")
