import logging

import numpy as np
import pytest

from pdpo_jax.core import kept
from pdpo_jax.training import branch_batches, reference, scoring
from tests import loading, tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  base, users, *_ = tiny.tiny_parts(config)
  split = tiny.tiny_split(config, base, users, "train")
  return config, base, split


@pytest.fixture
def compute(parts, tmp_path, monkeypatch):
  """Calls `reference_logps` in an empty folder and counts forward passes."""
  config, base, split = parts
  batches = branch_batches.with_reference(
    config.recipe, base, split, config.cache_folder
  )
  made = scoring.step_lib.make_score
  passes = []

  def counting(*args):
    score = made(*args)

    def counted(*inputs):
      passes.append(1)
      return score(*inputs)

    return counted

  monkeypatch.setattr(scoring.step_lib, "make_score", counting)

  def run(base=base, examples=split.tokenized):
    before = len(passes)
    logps = reference.reference_logps(
      base, examples, batches, tmp_path, config.train.logits_chunk
    )
    return logps, len(passes) - before

  return run


def test_the_second_run_reads_what_the_first_computed(compute, tmp_path):
  first, passes = compute()
  again, none = compute()
  assert passes > 0
  assert none == 0
  np.testing.assert_array_equal(first, again)
  assert [file.suffix for file in tmp_path.iterdir()] == [".logps"]


def test_another_base_or_other_data_are_computed_anew(compute, parts):
  split = parts[2]
  _, passes = compute()
  other = tiny.tiny_base(loading.load(parts[0]), seed=1)
  assert compute(base=other)[1] == passes
  swapped = [split.tokenized[1], split.tokenized[0], *split.tokenized[2:]]
  assert compute(examples=swapped)[1] == passes
  assert compute()[1] == 0


def test_an_interrupted_computation_goes_on(compute, monkeypatch, tmp_path):
  whole, passes = compute()
  for file in tmp_path.iterdir():
    file.unlink()
  monkeypatch.setattr(reference, "_SAVE_SECONDS", 0.0)
  written = []
  write = reference._write

  def write_once(file, logps):
    write(file, logps)
    written.append(file)
    raise KeyboardInterrupt

  monkeypatch.setattr(reference, "_write", write_once)
  with pytest.raises(KeyboardInterrupt):
    compute()
  monkeypatch.setattr(reference, "_write", write)
  logps, rest = compute()
  assert rest == passes - 1 > 0
  np.testing.assert_array_equal(logps, whole)


def test_a_damaged_file_is_computed_again(compute, tmp_path, caplog):
  whole, passes = compute()
  (file,) = tmp_path.iterdir()
  content = file.read_bytes()
  file.write_bytes(content[:-4] + b"\0\0\0\0")
  with caplog.at_level(logging.WARNING):
    again, as_many = compute()
  assert f"{file} is not what was written and is computed again" in caplog.text
  assert as_many == passes
  np.testing.assert_array_equal(again, whole)
  assert file.read_bytes() == content


def test_whatever_is_wrong_with_a_file_nothing_of_it_is_used(tmp_path):
  shape = (7, 2)
  logps = np.arange(14, dtype=np.float32).reshape(shape)
  file, other = tmp_path / "a.logps", tmp_path / "b.logps"
  reference._write(file, logps)
  content = file.read_bytes()
  reference._write(other, logps)
  contents = [b"", content[:50], content + b"\0", other.read_bytes()]
  contents += [np.zeros(22, np.float32).tobytes(), b"\x93NUMPY" * 14]
  for place in range(len(content)):
    changed = bytearray(content)
    changed[place] ^= 1
    contents.append(bytes(changed))
  for damaged in contents:
    file.write_bytes(damaged)
    assert np.isnan(reference._read(file, shape)).all()
  file.write_bytes(content)
  np.testing.assert_array_equal(reference._read(file, shape), logps)
  file.unlink()
  file.mkdir()
  assert np.isnan(reference._read(file, shape)).all()
  with pytest.raises(kept.Unwritable, match="logps cannot be written"):
    reference._write(file, logps)
