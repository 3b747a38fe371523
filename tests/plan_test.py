import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import prism
from pdpo_jax import plan
from pdpo_jax.models import policy
from pdpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  ("path", "preset"),
  [
    ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
    ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
    ("EleutherAI/gpt-j-6b", "gptj-6b"),
    ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
  ],
)
def test_a_hub_id_tells_the_architecture(path, preset):
  assert plan.architecture(path, None) == policy.PRESETS[preset]


def test_a_local_folder_tells_it_best(tmp_path):
  arch = policy.PRESETS["gptj-tiny"]
  folder = tmp_path / "llama-3-8b"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(arch.to_hf()))
  assert plan.architecture(str(folder), None) == arch


def test_a_flag_goes_before():
  path = "meta-llama/Llama-3.2-1B"
  arch = plan.architecture(path, "llama-3-8b")
  assert arch == policy.PRESETS["llama-3-8b"]


def test_an_architecture_that_cannot_be_told_is_asked_for():
  with pytest.raises(ValueError, match=r"models/tldr_sft.*add --arch=, one of"):
    plan.architecture("models/tldr_sft", None)
  with pytest.raises(ValueError, match="'llama-9' is not one of gptj-6b"):
    plan.architecture("", "llama-9")


def test_a_folder_of_another_model_is_an_error(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
  with pytest.raises(ValueError, match="'mamba' is not supported"):
    plan.architecture(str(tmp_path), None)


def test_a_batch_is_as_long_as_the_config_allows():
  config = config_lib.Config()
  config.data.max_prompt_tokens = 500
  config.data.max_response_tokens = 300
  config.user.num_tokens = 10
  shape = plan.batch_shape(config, users=9)
  # Prefix and prompt together are a multiple of 8, as data.batching pads.
  assert (shape.prompt, shape.response) == (502, 304)
  assert (shape.examples, shape.responses, shape.user_rows) == (32, 2, 10)
  assert not shape.bare_prompt
  shape = plan.batch_shape(config, prompt=470, responses=3, response=16)
  assert (shape.prompt, shape.responses, shape.response) == (470, 3, 16)


def test_users_and_responses_are_those_of_the_options():
  config = config_lib.Config()
  config.data.source = "prism"
  assert plan.batch_shape(config).responses == 4
  config.data.prism.rejected = "each"
  assert plan.batch_shape(config).responses == 2
  config.data.source = "community_alignment"
  assert plan.batch_shape(config, users=9).responses == 4
  config.data.source = "tldr"
  config.data.tldr.num_workers = 500
  assert plan.batch_shape(config).user_rows == 501


def test_branches_that_read_different_prompts_make_two_in_a_batch():
  config = config_lib.Config()
  config.loss.generic_sees_text = False
  assert plan.batch_shape(config).bare_prompt
  config.user.kind = "none"
  assert not plan.batch_shape(config).bare_prompt


def test_how_many_users_a_file_has_is_asked_for():
  config = config_lib.Config()
  config.data.source = "files"
  with pytest.raises(ValueError, match="add --users=N"):
    plan.batch_shape(config)


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "pdpo_jax.plan", *arguments],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )


@pytest.mark.slow
def test_a_plan_is_printed_and_written(tmp_path):
  file = tmp_path / "plan.json"
  done = run(
    "--config=configs/prism.py",
    "--topology=gpu-2",
    "--arch=llama-tiny",
    "--prompt_tokens=14",
    "--responses=2",
    "--response_tokens=8",
    "--users=7",
    "--config.lora.dropout=0",
    "--config.train.batch_size=4",
    "--config.train.accumulation_steps=1",
    f"--json={file}",
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert "gpu-2: 2 devices (data 1, fsdp 2, tensor 1)" in done.stdout
  assert "are estimates" in done.stdout
  found = json.loads(file.read_text())["plan"]
  assert found["fits"] and found["devices"] == 2
  assert found["shape"]["user_rows"] == 8
  memory = dict(found["memory"])
  assert memory.pop("total") == sum(memory.values())


def test_an_error_is_one_line():
  done = run("--config=configs/prism.py", "--topology=v5e-12")
  assert done.returncode == 1
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith("error: topology 'v5e-12' is not known; there are v4-")


def test_turns_of_a_dialogue_share_its_prompt_or_are_an_error():
  config = prism.get_config()
  assert plan.batch_shape(config, turns=4).turns == 4
  with pytest.raises(
    ValueError, match="--turns 9 are more than the 8 examples"
  ):
    plan.batch_shape(config, turns=9)
  config.data.share_trunks = False
  with pytest.raises(ValueError, match="--turns 4 share no trunk"):
    plan.batch_shape(config, turns=4)
