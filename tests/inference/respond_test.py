import collections
import dataclasses
import functools

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.inference import respond
from pdpo_jax.models import policy as policy_lib
from tests import loading, tiny


def test_prompts_without_room_are_left_out_before_anything_is_trained(
  tmp_path, caplog
):
  config = tiny.tiny_config(tmp_path)
  base, *_ = tiny.tiny_parts(config)
  config.data.max_prompt_tokens = 20
  short, long = (
    structs.PromptExample((structs.Message("user", "so? " * times),))
    for times in (1, 90)
  )
  arch = base.lm.arch
  fitting = functools.partial(
    respond.fitting,
    tokenizer=base.tokenizer,
    arch=arch,
    answers=config.answers,
    data=config.data,
    prefix_length=config.user.prefix_length,
  )
  assert fitting([short, long]) == [short]
  assert "1 of 2 prompts are left out" in caplog.text
  with pytest.raises(ValueError, match="none of the 1 prompts"):
    fitting([long])
  config.answers.max_new_tokens = arch.max_positions
  with pytest.raises(ValueError, match=r"max_new_tokens .* the base has"):
    fitting([short])


def test_a_prefix_a_prompt_and_an_answer_take_every_position_and_no_more(
  tmp_path,
):
  config = tiny.tiny_config(tmp_path)
  base = tiny.tiny_base(loading.load(config))
  prompts = [structs.PromptExample("so? "), structs.PromptExample("so? " * 9)]
  encoder = prompts_lib.make_encoder(base.tokenizer, config.data)
  encoded = encoder.encode(prompts, collections.Counter())
  need = 3 + max(map(len, encoded)) + config.answers.max_new_tokens

  def fitting(positions):
    arch = dataclasses.replace(base.lm.arch, max_positions=positions)
    how = config.answers, config.data, 3
    return respond.fitting(prompts, base.tokenizer, arch, *how)

  assert fitting(need) == prompts
  with pytest.raises(ValueError, match=f"need up to {need} positions"):
    fitting(need - 1)


def test_a_response_depends_on_its_own_prompt_row_and_seed(tmp_path):
  config = tiny.tiny_config(tmp_path)
  config.answers.max_new_tokens = 5
  base, _, _, _, dataset = tiny.tiny_parts(config)
  policy = policy_lib.base_policy(base.lm)
  prompts = dataset.prompts
  how = config.answers, config.data
  said = respond.answer(
    policy, base, prompts, {"a": 0, "b": 0}, *how, config.seed
  )
  assert said["a"] == said["b"]
  backwards = respond.respond(
    policy, base, prompts[::-1], [0, 0], [config.seed + 1, config.seed], *how
  )
  assert backwards == said["a"][::-1]
