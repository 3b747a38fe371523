"""Two processes of four simulated devices each, beside one of eight.

`launch/local.sh` starts them, as it would for anybody. This file is also their
configuration: --config=tests/training/processes_test.py:FOLDER.
"""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import checkpoint
from pdpo_jax.weights import base as base_lib
from tests import loading, tiny

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "tests/training/processes_test.py"


def get_config(folder: str) -> config_lib.Config:
  """Eleven steps of a tiny base that lies in `folder`."""
  config = tiny.tiny_config(pathlib.Path(folder) / "run")
  config.base.path = str(pathlib.Path(folder) / "base")
  config.cache = str(pathlib.Path(folder) / "cache")
  config.vanilla = False
  config.data.source = "files"
  config.data.path = str(pathlib.Path(folder) / "train.jsonl")
  config.data.files.heldout_path = str(pathlib.Path(folder) / "held_out.jsonl")
  config.train.epochs = 1
  config.train.warmup_steps = 0
  config.train.eval_every = 100
  config.mesh.fsdp = 8
  config.answers.num_prompts = 1
  config.answers.num_users = 1
  config.answers.max_new_tokens = 2
  return config


def write_dialogues(file: pathlib.Path, each: int, first: int) -> None:
  """So many dialogues of three turns of seven people; the first one's number.

  With the generic user's, the user table has eight rows.
  """
  records = []
  for number in range(first, first + 7 * each):
    turns = [{"role": "user", "content": f"What of number {number}?"}]
    for place, asked in enumerate(("And then?", "Why so?", "")):
      chosen = f"It is {number * (place + 2)}."
      records.append(
        {
          "user_id": f"person {number % 7}",
          "prompt": [*turns],
          "chosen": chosen,
          "rejected": [f"Who knows {place}?", "No."][: 1 + number % 2],
        }
      )
      turns += [
        {"role": "assistant", "content": chosen},
        {"role": "user", "content": asked},
      ]
  file.write_text("".join(json.dumps(each) + "\n" for each in records))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """Has a base, and what is compiled once for all runs."""
  made = tmp_path_factory.mktemp("processes")
  # 84 comparisons, which eleven batches of eight have.
  write_dialogues(made / "train.jsonl", each=4, first=0)
  write_dialogues(made / "held_out.jsonl", each=1, first=100)
  texts = loading.load(tiny.tiny_config(made))
  base_lib.write_base(made / "base", tiny.tiny_base(texts))
  return made


def start(folder, run, *flags, processes=2, launch=()) -> subprocess.Popen:
  """`pdpo_jax.main` in run folder `run`, on eight devices all together."""
  devices = f"--devices={8 // processes}"
  command = [
    "launch/local.sh", f"--processes={processes}", devices, "--", *launch,
    sys.executable, "-m", "pdpo_jax.main", f"--config={ROOT / CONFIG}:{folder}",
    f"--config.workdir={folder / run}", *flags,
  ]  # fmt: skip
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def end(process: subprocess.Popen, seconds: float = 900) -> tuple[int, str]:
  """Status and output; what is still there after `seconds` is killed."""
  try:
    output, _ = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired:
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    raise AssertionError(f"no end within {seconds} s: {output}") from None
  return process.returncode, output


def signal_one(launcher: subprocess.Popen, index: int, number: int) -> None:
  """Sends a signal to a single one of the processes."""
  children = pathlib.Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
  for pid in map(int, children.read_text().split()):
    line = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    if f"--process_id={index}" in line and "pdpo_jax" in line:
      os.kill(pid, number)
      return
  raise AssertionError(f"process {index} is not there")


def wait_for_step(process: subprocess.Popen, run: pathlib.Path, step: int):
  metrics = run / "pdpo" / "metrics.jsonl"
  while not metrics.exists() or f'"step": {step},' not in metrics.read_text():
    assert process.poll() is None, end(process)
    time.sleep(0.02)


def losses(run: pathlib.Path) -> list[float]:
  lines = (run / "pdpo" / "metrics.jsonl").read_text().splitlines()
  rows = map(json.loads, lines)
  return [row["loss"] for row in rows if "loss" in row]


def weights(run: pathlib.Path) -> dict[str, np.ndarray]:
  with checkpoint.Checkpoints(run / "pdpo" / "checkpoints") as saved:
    assert saved.steps[-1] == 11
    items = saved.load_as_saved(11, ("lora", "users", "optimizer"))
  leaves = jax.tree_util.tree_leaves_with_path(items)
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in leaves
    if not isinstance(leaf, str)
  }


def assert_same_end(run: pathlib.Path, other: pathlib.Path) -> None:
  """Sums that are made in another order differ by rounding alone."""
  np.testing.assert_allclose(losses(run), losses(other), atol=1e-5)
  ours, theirs = weights(run), weights(other)
  assert ours.keys() == theirs.keys() and len(ours) > 10
  for name, values in ours.items():
    np.testing.assert_allclose(values, theirs[name], atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def whole(folder) -> pathlib.Path:
  """A run of one process that nothing happens to."""
  status, output = end(start(folder, "whole", processes=1))
  assert status == 0, output
  assert len(losses(folder / "whole")) == 11
  assert "trunks: 28 for 84 comparisons, 28 with several (84)" in output
  return folder / "whole"


@pytest.fixture(scope="module")
def stopped(folder, whole) -> pathlib.Path:
  """A run of two processes after SIGTERM to one of them."""
  process = start(folder, "stopped", "--config.train.checkpoint_every=100")
  wait_for_step(process, folder / "stopped", 3)
  signal_one(process, 1, signal.SIGTERM)
  status, output = end(process)
  assert status == 0, output
  assert "stopped by SIGTERM at step" in output
  assert "Traceback" not in output
  return folder / "stopped"


@pytest.mark.slow
def test_one_process_goes_on_where_sigterm_to_one_stopped_two(
  folder, whole, stopped
):
  run = folder / "moved"
  shutil.copytree(stopped, run)
  with checkpoint.Checkpoints(run / "pdpo" / "checkpoints") as saved:
    # And the last whose text was whole.
    assert saved.steps[-1] > 3 and len(saved.steps) <= 2
  flags = ["--config.train.checkpoint_every=100"]
  status, output = end(start(folder, "moved", *flags, processes=1))
  assert status == 0, output
  assert_same_end(run, whole)


@pytest.mark.slow
def test_where_one_is_killed_the_other_ends_and_both_go_on_again(
  folder, whole, stopped
):
  run = folder / "killed"
  shutil.copytree(stopped, run)
  flags = ["--config.train.checkpoint_every=100"]
  process = start(folder, "killed", *flags, "--silence_timeout=10")
  wait_for_step(process, run, 7)
  signal_one(process, 1, signal.SIGKILL)
  status, output = end(process)
  assert status == 128 + signal.SIGKILL, output
  # Whichever comes first: a computation that breaks off, or the silence.
  assert re.search(
    r"\[0\] error: process (0 broke off a common|1 has given no sign of life)"
    ".* start all processes again to go on",
    output,
  ), output
  status, output = end(start(folder, "killed", *flags))
  assert status == 0, output
  assert_same_end(run, whole)
  for name in ("answers.jsonl", "report/report.md", "pdpo/scores"):
    assert (run / name).exists(), name
  ours, theirs = (
    json.loads((each / "results.json").read_text())["reward_accuracy"]
    for each in (run, whole)
  )
  assert ours == theirs
  # Prints and files are those of one.
  assert output.count("Report: ") == 1
  assert "[1] train:" not in output


def run_alone(*words: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def test_a_command_without_process_0_ends_after_its_join_timeout():
  done = run_alone(
    "-m", "pdpo_jax.main", "--config=configs/quickstart.py:smoke",
    "--distributed", "--coordinator=localhost:39251", "--num_processes=2",
    "--process_id=1", "--join_timeout=2",
  )  # fmt: skip
  assert done.returncode == 1, done.stderr
  assert done.stderr.strip() == (
    "error: process 1 waits for process 0 at localhost:39251: nobody listens "
    "there; it was not started, or has another address. That took 2 s; "
    "--join_timeout sets it"
  )


def test_the_coordinator_listens_at_the_named_address_alone():
  look = (
    "import socket; from pdpo_jax.core import processes; "
    "processes.start('127.0.0.1:39253', 1, 0, join_timeout=60, "
    "silence_timeout=60); "
    "socket.create_connection(('127.0.0.1', 39253), timeout=5).close(); "
    "print(socket.socket().connect_ex(('127.0.0.2', 39253))); "
    "processes.finish()"
  )
  done = run_alone("-c", look)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) == errno.ECONNREFUSED


def test_a_value_that_takes_longer_than_a_second_to_send_arrives():
  gather = (
    "import sys; from pdpo_jax.core import processes; "
    "number = int(sys.argv[1]); "
    "processes.start('localhost:39252', 2, number, join_timeout=60, "
    "silence_timeout=60); own = bytes([number]) * 150_000_000; "
    "found = [(x[-1], len(x)) for x in processes.gather(own)]; assert found == "
    "[(0, 150_000_000), (1, 150_000_000)]; processes.finish()"
  )
  both = [
    subprocess.Popen(
      [sys.executable, "-c", gather, str(number)],
      cwd=ROOT,
      env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in (0, 1)
  ]
  try:
    for each in both:
      _, errors = each.communicate(timeout=180)
      assert each.returncode == 0, errors
  finally:
    for each in both:
      each.kill()


# As the words after `bash -c`: the second process gets another flag, or does
# not start in the folder in which the first does.
OTHER_FLAG = '''[[ "$*" == *--process_id=1* ]] && set -- "$@" "$0"; exec "$@"'''
OTHER_FOLDER = '''[[ "$*" == *--process_id=1* ]] || cd "$0"; exec "$@"'''


def test_processes_that_disagree_say_on_what(folder):
  launch = ["bash", "-c", OTHER_FLAG, "--config.loss.beta=0.7"]
  status, output = end(start(folder, "odd", launch=launch))
  assert status == 1, output
  for each in (0, 1):
    assert re.search(
      rf"\[{each}\] error: (process . failed: )?the processes do not agree on "
      r"the configuration: loss.beta is 0.7 on process 1 and 0.5 on process 0",
      output,
    ), output
  assert not (folder / "odd").exists()


def test_an_error_of_one_process_ends_all_with_its_reason(folder):
  launch = ["bash", "-c", OTHER_FOLDER, str(folder)]
  process = start(folder, "odd", "--config.base.path=./base", launch=launch)
  status, output = end(process)
  assert status == 1, output
  assert "[1] error: base.path './base'" in output
  assert "[0] error: process 1 failed: base.path './base'" in output
