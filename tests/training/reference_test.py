import logging
import pathlib

import numpy as np
import pytest

from pdpo_jax import experiment
from pdpo_jax.training import reference
from tests import tiny


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  base, users, *_ = tiny.tiny_parts(config)
  part = tiny.tiny_part(config, base, users, "train")
  return config, base, part


@pytest.fixture
def compute(parts, tmp_path, monkeypatch):
  """Calls `reference_logps` in an empty folder and counts forward passes."""
  config, base, part = parts
  batches = experiment.make_batches(config, base, part)
  made = reference.step_lib.make_score
  passes = []

  def counting(*args):
    score = made(*args)

    def counted(*inputs):
      passes.append(1)
      return score(*inputs)

    return counted

  monkeypatch.setattr(reference.step_lib, "make_score", counting)

  def run(base=base, examples=part.tokenized):
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
  assert [file.suffix for file in tmp_path.iterdir()] == [".npy"]


def test_another_base_or_other_data_are_computed_anew(compute, parts):
  part = parts[2]
  _, passes = compute()
  other = tiny.tiny_base(tiny.sources.load(parts[0]), seed=1)
  assert compute(base=other)[1] == passes
  swapped = [part.tokenized[1], part.tokenized[0], *part.tokenized[2:]]
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


@pytest.mark.parametrize("damage", ["short", "shape"])
def test_a_damaged_file_is_computed_again(compute, tmp_path, caplog, damage):
  whole, _ = compute()
  (file,) = tmp_path.iterdir()
  if damage == "short":
    file.write_bytes(file.read_bytes()[:50])
  else:
    np.save(file, whole[:-1])
  with caplog.at_level(logging.WARNING):
    again, _ = compute()
  assert "computed again" in caplog.text
  np.testing.assert_array_equal(again, whole)
  np.testing.assert_array_equal(np.load(pathlib.Path(file)), whole)
