import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from pdpo_jax.weights import tensor_files

TENSORS = {
  "half": np.arange(15).reshape(3, 5).astype(jnp.bfloat16),
  "single": np.arange(14, dtype=np.float32).reshape(7, 2),
  "vector": np.arange(11, dtype=np.float16),
  "scalar": np.array(2.5, np.float32),
}


def write(file, tensors):
  lazy = {
    name: tensor_files.LazyTensor(x.shape, x.dtype, lambda x=x: x)
    for name, x in tensors.items()
  }
  tensor_files.write_file(file, lazy)


def assert_same(found, expected):
  assert found.dtype == expected.dtype and found.shape == expected.shape
  np.testing.assert_array_equal(found, expected)


def test_the_library_reads_what_is_written(tmp_path):
  write(tmp_path / "x", TENSORS)
  with safetensors.safe_open(tmp_path / "x", "np") as file:
    assert file.metadata() == {"format": "pt"}
    assert set(file.keys()) == set(TENSORS)
    for name, value in TENSORS.items():
      assert_same(file.get_tensor(name), value)
  assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_every_tensor_is_aligned(tmp_path):
  assert TENSORS["half"].nbytes % 4  # and a float32 comes after it
  write(tmp_path / "x", TENSORS)
  for name, place in tensor_files.read_header(tmp_path / "x").items():
    assert place.offset % TENSORS[name].itemsize == 0, name
    assert place.read().flags.aligned


def test_what_the_library_writes_is_read(tmp_path):
  safetensors.numpy.save_file(TENSORS, tmp_path / "x")
  found = tensor_files.read_header(tmp_path / "x")
  assert found.keys() == TENSORS.keys()
  for name, value in TENSORS.items():
    assert found[name].shape == value.shape
    assert_same(found[name].read(), value)


def test_transposed_and_jax_arrays_are_written_in_order(tmp_path):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
  write(tmp_path / "x", {"a": matrix.T, "b": jnp.asarray(matrix)})
  found = safetensors.numpy.load_file(tmp_path / "x")
  assert_same(found["a"], matrix.T)
  assert_same(found["b"], matrix)


def test_tensors_are_made_one_at_a_time(tmp_path):
  order = []

  def lazy(name):
    def make():
      order.append(name)
      assert list(tmp_path.glob(".x.*.part"))
      return np.zeros(3, np.float32)

    return tensor_files.LazyTensor((3,), np.dtype("float32"), make)

  tensors = {name: lazy(name) for name in "abc"}
  assert order == []
  tensor_files.write_file(tmp_path / "x", tensors)
  assert order == ["a", "b", "c"]


def test_a_file_that_was_not_finished_does_not_have_its_name(tmp_path):
  def fail():
    raise KeyboardInterrupt

  lazy = tensor_files.LazyTensor((3,), np.dtype("float32"), fail)
  with pytest.raises(KeyboardInterrupt):
    tensor_files.write_file(tmp_path / "x", {"a": lazy})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["empty", "cut", "header", "page", "longer"])
def test_a_damaged_file_is_named(change, tmp_path):
  file = tmp_path / "model.safetensors"
  write(file, TENSORS)
  data = file.read_bytes()
  changed = {
    "empty": b"",
    "cut": data[:-1],
    "header": data[:20],
    "page": b"<html>404</html>" * 20,
    "longer": data + b"0",
  }
  file.write_bytes(changed[change])
  with pytest.raises(
    ValueError, match=r"model\.safetensors is cut off .* download it again"
  ):
    tensor_files.read_header(file)
