import dataclasses

import pytest

from pdpo_jax import experiment, main
from tests import tiny


def test_what_is_wrong_shows_before_there_is_a_run_folder(tmp_path):
  config = tiny.tiny_config(tmp_path / "run")
  config.mesh.data = 3
  with pytest.raises(ValueError, match="make 3 devices, and there are 1"):
    main.train_and_answer(config)
  assert not (tmp_path / "run").exists()


def test_samples_that_are_longer_than_the_base_are_an_error(tmp_path):
  config = tiny.tiny_config(tmp_path)
  base, users, _, _, dataset = tiny.tiny_parts(config)
  data = experiment.tokenize_parts(config, base, dataset, users=users)
  experiment.check_lengths(config, base, data)
  longest = max(
    3 + len(row.prompt) + len(response)
    for part in data.parts.values()
    for row in part.tokenized
    for response in row.responses
  )
  arch = dataclasses.replace(base.lm.arch, max_positions=longest)
  base.lm.arch = arch
  experiment.check_lengths(config, base, data)
  base.lm.arch = dataclasses.replace(arch, max_positions=longest - 1)
  with pytest.raises(
    ValueError, match=f"have {longest} tokens.*has {longest - 1}"
  ):
    experiment.check_lengths(config, base, data)
