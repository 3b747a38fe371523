import pytest

from pdpo_jax.planning import topologies


@pytest.mark.parametrize(
  ("name", "chips", "libtpu"),
  [
    ("v5e-16", 16, "v5e:4x4"),
    ("v5e-1", 1, "v5e:1x1"),
    ("v6e-8", 8, "v6e:2x4"),
    # Google counts cores here.
    ("v5p-8", 4, "v5p:2x2x1"),
    ("v4-32", 16, "v4:2x2x4"),
  ],
)
def test_a_slice_has_as_many_chips_as_google_says(name, chips, libtpu):
  topology = topologies.parse(name)
  assert topology.platform == "tpu"
  assert topology.num_devices == chips
  assert topology.libtpu_name == libtpu


def test_google_calls_v5e_by_another_name():
  assert topologies.parse("v5litepod-16") == topologies.parse("v5e-16")
  assert topologies.parse("v5e-16").accelerator_type == "v5litepod-16"


def test_gpus_and_cpus_come_in_any_number():
  assert topologies.parse("gpu-3").num_devices == 3
  assert topologies.parse("gpu-8").chip == topologies.parse("h100-8").chip
  assert topologies.parse("cpu-8").chip is None


@pytest.mark.parametrize(
  "name", ["v5e-12", "v9-8", "v5e", "gpu-0", "cpu-x", ""]
)
def test_an_unknown_topology_is_answered_with_the_known_ones(name):
  with pytest.raises(ValueError, match=r"is not known; there are v4-\{8,16"):
    topologies.parse(name)


def test_smaller_slices_come_in_order():
  def names(name):
    return [each.name for each in topologies.smaller(topologies.parse(name))]

  assert names("v5e-16") == ["v5e-1", "v5e-4", "v5e-8"]
  assert names("v5p-16") == ["v5p-8"]
  assert names("gpu-8") == ["gpu-1", "gpu-2", "gpu-4"]
  assert names("v6e-1") == []
