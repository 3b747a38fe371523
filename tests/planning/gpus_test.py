import re
import types

import jax
import pytest

from pdpo_jax.planning import gpus


@pytest.fixture(name="asked")
def _asked(monkeypatch):
  """What JAX was asked for, in place of GPUs."""
  asked = {}

  def topology(**options):
    asked.update(options)
    return types.SimpleNamespace(devices=jax.devices())

  monkeypatch.setattr(gpus.jax_topologies, "get_topology_desc", topology)
  return asked


@pytest.mark.parametrize("gpu", gpus.GPUS.values(), ids=list(gpus.GPUS))
def test_xla_is_told_what_it_asks(gpu, asked):
  gpus.devices(gpu, 1)
  told = asked["target_config"].split()
  for name, value in (
    ("core_count:", gpu.multiprocessors),
    ("device_memory_size:", int(gpu.memory)),
  ):
    places = [place for place, word in enumerate(told) if word == name]
    assert str(value) in [told[place + 1] for place in places]
  assert f'"{gpu.name}"' in asked["target_config"]
  major, minor = gpu.capability
  capability = rf"capability {{\s*major: {major} minor: {minor}\s*}}"
  assert re.search(capability, asked["target_config"])
  # All in the same units: the slowest of them have 300 GB/s.
  assert 3e11 <= gpu.bandwidth < 1e13 and 1e14 < gpu.peak < 3e15
  assert gpu.links < gpu.bandwidth


@pytest.mark.parametrize(
  ("count", "shape"),
  [(1, "1x1x1"), (4, "1x1x4"), (8, "1x1x8"), (16, "1x2x8"), (12, "1x1x12")],
)
def test_hosts_have_eight_where_they_can(count, shape, asked):
  gpus.devices(gpus.GPUS["h100"], count)
  assert asked["topology"] == shape
