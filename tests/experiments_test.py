"""The experiments in `configs/`, all but their size, from files to results."""

import collections
import dataclasses
import importlib.util
import json
import pathlib
import re

import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx

from pdpo_jax import command_line, generate, main
from pdpo_jax.core import sections, structs
from pdpo_jax.data import prompts, tokenize
from pdpo_jax.evaluation import user_space
from pdpo_jax.inference import respond
from pdpo_jax.models import gptj, llama
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.training import pdpo
from pdpo_jax.weights import base as base_lib
from tests import prism_files

ROOT = pathlib.Path(__file__).parent.parent
CHAT = (
  "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}"
  "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def experiment(name: str, variant: str) -> config_lib.Config:
  spec = importlib.util.spec_from_file_location(
    name, ROOT / "configs" / f"{name}.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(variant)


def shrink(config: config_lib.Config, folder: pathlib.Path) -> None:
  """Leaves everything but sizes as the experiment has it."""
  config.workdir = str(folder / "run")
  config.cache = str(folder / "cache")
  config.data.max_shapes = 1
  config.data.max_prompt_tokens = min(config.data.max_prompt_tokens, 120)
  config.data.max_response_tokens = min(config.data.max_response_tokens, 20)
  config.lora.rank = 2
  config.user.num_tokens = 3
  config.train.batch_size = 16
  config.train.accumulation_steps = min(config.train.accumulation_steps, 2)
  config.train.epochs = 1
  config.train.warmup_steps = 1
  config.answers.num_prompts = 2
  config.answers.num_users = 2
  config.answers.min_new_tokens = min(config.answers.min_new_tokens, 3)
  config.answers.max_new_tokens = 4


def write_base(folder: pathlib.Path, lm: nnx.Module, tokenizer) -> str:
  base_lib.write_base(
    folder, base_lib.Base(lm, tokenizer, base_lib.fingerprint(lm))
  )
  return str(folder)


def test_every_row_of_the_table_is_what_the_released_variants_set():
  # `docs/data.md`; a row names its options without a value for one experiment.
  table = (ROOT / "docs" / "data.md").read_text()
  table = table.partition("## As the released code does it")[2]
  section, options = "", set()
  for row in table.partition("### Not reproduced")[0].splitlines():
    for name in re.findall(r"`([a-z_]*\.[a-z_.]+)`", row.partition(" | ")[2]):
      section = section if name.startswith(".") else name.rpartition(".")[0]
      options.add(section + name if name.startswith(".") else name)
  assert len(options) > 25
  changed = set()
  for name in ("prism", "tldr"):
    first, released = (
      sections.flatten(dataclasses.asdict(experiment(name, variant)))
      for variant in ("individual", "authors")
    )
    changed |= {key for key in first if first[key] != released[key]}
  # TRL's IPO is for whoever sets `loss.kind`; batches are as large as ever.
  unset = {"loss.kind", "loss.length_normalized", "train.batch_size"}
  assert options - unset == changed - {"name"}


def test_the_released_variants_reach_what_they_configure():
  for name in ("prism", "tldr"):
    config = experiment(name, "authors")
    config_lib.validate(config)
    loss = pdpo.make_objective(config.recipe)
    assert (loss.kind, loss.beta, loss.mixing) == ("sigmoid", 0.5, "batch")
    # Microbatches of one row: its weight is alpha or 1 - alpha.
    assert config.train.accumulation_steps == config.train.batch_size == 32
    assert config.train.epochs == 1 and config.lora.dropout == 0
    users = config.user
    assert (users.weights, users.offset_init) == ("softmax", "vocabulary")
    assert (users.init, users.init_std) == ("vocabulary", 1.0)
    vanilla = dataclasses.replace(config, vanilla=True).trainings["vanilla"]
    assert pdpo.make_objective(vanilla.recipe).alpha == 0
    spec = config.answers
    assert spec.min_new_tokens == 32 and spec.penalize_prompt
    assert (spec.repetition_penalty, spec.no_repeat_ngram) == (1.15, 3)
    assert spec.max_new_tokens == {"prism": 500, "tldr": 1024}[name]
    # Less the names of users, which stand in prompts there.
    whole = config.data.max_prompt_tokens + config.data.max_response_tokens
    assert whole == {"prism": 770 - 16, "tldr": 600 - 14}[name]


def released_tokens(tokenizer, turns, user_text):
  """A prompt as the released code has it, less what names the user there."""
  text = f"{user_text}\n" + "".join(
    f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n"
    f"{turn.content}<|eot_id|>\n"
    for turn in turns
  )
  text += "<|start_header_id|>assistant<|end_header_id|>\n\n"
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return [tokenizer.bos_token_id, *ids]


def test_prisms_released_prompt_is_the_text_of_that_code():
  data = experiment("prism", "authors").data
  tokenizer = tokenize.train_tokenizer(["so what? I am", "the cat"], 300)
  special = ["start_header_id", "end_header_id", "eot_id"]
  tokenizer.add_special_tokens(
    {"additional_special_tokens": [f"<|{name}|>" for name in special]}
  )
  turns = (
    structs.Message("user", "so what?"),
    structs.Message("assistant", "I am"),
    structs.Message("user", "the cat "),
  )
  encoder = prompts.make_encoder(tokenizer, data)
  texts = "", "User textual information: preference: safety; "
  asked = [structs.PromptExample(turns, text) for text in texts]
  encoded = encoder.encode_prompts(asked, collections.Counter())
  for text, prompt in zip(texts, encoded, strict=True):
    assert prompt.ids.tolist() == released_tokens(tokenizer, turns, text)
  (responses,) = encoder.encode_responses(
    encoded[:1], [("the cat", "")], collections.Counter()
  )
  end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
  assert [ids.tolist() for ids in responses] == [
    [*tokenizer("the cat")["input_ids"], end], [end],
  ]  # fmt: skip


def test_tldrs_released_prompt_has_a_bos_and_in_training_a_space():
  data = experiment("tldr", "authors").data
  tokenizer = tokenize.train_tokenizer(["POST: the cat\nTL;DR: sat"], 300)
  encoder = prompts.make_encoder(tokenizer, data)
  post = "POST: the cat\nTL;DR:"
  trained, answered = encoder.encode_prompts(
    [structs.PromptExample(post + " "), structs.PromptExample(post)],
    collections.Counter(),
  )
  bos = end = tokenizer.eos_token_id
  assert answered.ids.tolist() == [bos, *tokenizer(post)["input_ids"]]
  (responses,) = encoder.encode_responses(
    [trained], [(" sat", "")], collections.Counter()
  )
  for ids, text in zip(responses, (" sat", ""), strict=True):
    whole = tokenizer(f"{post} {text}")["input_ids"]
    assert [*trained.ids, *ids] == [bos, *whole, end]


@pytest.fixture(autouse=True)
def few_permutations(monkeypatch):
  """Probes of users' facts are half of a tiny run's time."""
  monkeypatch.setattr(user_space, "_PERMUTATIONS", 5)


@pytest.fixture(scope="module")
def prism(tmp_path_factory):
  folder = tmp_path_factory.mktemp("prism")
  prism_files.write(folder / "data", 16, 0)
  text = (folder / "data" / "conversations.jsonl").read_text()[:20_000]
  tokenizer = tokenize.train_tokenizer(text.split("\n"), 400)
  special = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
  tokenizer.add_special_tokens(
    {"bos_token": "<|begin|>", "additional_special_tokens": special}
  )
  tokenizer.chat_template = CHAT
  arch = llama.Architecture(len(tokenizer), 24, 2, 4, 2, 6, 40)
  write_base(folder / "base", llama.Llama(arch, rngs=nnx.Rngs(0)), tokenizer)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  "variant",
  ["individual", "cluster10", "authors"],
)
def test_prism_runs_from_its_files_to_results(
  prism, variant, tmp_path, capsys, monkeypatch
):
  config = experiment("prism", variant)
  config.base.path = str(prism / "base")
  config.data.path = str(prism / "data")
  shrink(config, tmp_path)
  if config.loss.mixing == "batch":
    config.train.batch_size = 32  # Of four times as many rows.
  # Vanilla DPO beside a training is the same whatever its user model.
  config.vanilla = variant == "individual"
  results = main.train_and_answer(config)
  accuracy = results["reward_accuracy"]["pdpo"]
  assert (
    accuracy["heldout"]["by_user"]
    .keys()
    .isdisjoint(accuracy["unseen"]["by_user"])
  )
  written = json.loads((tmp_path / "run" / "results.json").read_text())
  assert written == json.loads(json.dumps(results))
  assert {"S", "G"} < set(results["words"])
  lines = (tmp_path / "run" / "answers.jsonl").read_text().splitlines()
  answer = json.loads(lines[0])
  begins = "User textual information: " if variant == "authors" else "About me."
  assert answer["user_text"].startswith(begins)
  assert answer["prompt"][-1]["role"] == "user"
  users = sorted(set(results["words"]) - {"S", "V", "G"})
  assert users
  ask(tmp_path / "run", *users, user_text="I am old.")
  said = capsys.readouterr().out
  assert all(f"{user}: " in said for user in users)
  # A known user is answered with the text that their choices were read with.
  texts = run_folder.read_user_texts(tmp_path / "run")
  asked = []
  respond_ = respond.respond

  def recorded(policy, base, prompts, *others):
    asked.extend(prompts)
    return respond_(policy, base, prompts, *others)

  monkeypatch.setattr(respond, "respond", recorded)
  ask(tmp_path / "run", *users, prompt=json.dumps(answer["prompt"]))
  assert [each.user_text for each in asked] == [texts[user] for user in users]
  turns = tuple(structs.Message(**turn) for turn in answer["prompt"])
  assert {each.prompt for each in asked} == {turns}


def test_what_only_looks_like_json_is_a_text():
  for text in ("hi", "[1]", "[]", '{"role": "user"}', '"x"', "7", '["a"]'):
    assert command_line.parse_prompt(text) == text
  with pytest.raises(ValueError, match="content of a message must be texts"):
    command_line.parse_prompt('[{"role": "user", "content": 5}]')


def ask(workdir, *users: str, prompt="hi", **others) -> None:
  """As `python -m pdpo_jax.generate` does."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  arguments = {"workdir": str(workdir), "user": list(users), "prompt": [prompt]}
  with flagsaver.as_parsed(**arguments, **others):
    generate.main()


@pytest.mark.slow
def test_a_run_without_a_held_out_split_has_no_accuracy(prism, tmp_path):
  config = experiment("prism", "individual")
  config.base.path = str(prism / "base")
  config.data.path = str(prism / "data")
  config.data.prism.heldout_dialogues = 0.0
  config.vanilla = False
  shrink(config, tmp_path)
  results = main.train_and_answer(config)
  assert results["reward_accuracy"]["pdpo"].keys() == {"unseen"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["individual", "authors"])
def test_tldr_runs_from_its_files_to_results(variant, tmp_path):
  rows = write_tldr(tmp_path / "data")
  tokenizer = tokenize.train_tokenizer(rows, 300)
  arch = gptj.Architecture(len(tokenizer), 20, 2, 2, 28, 6, max_positions=256)
  config = experiment("tldr", variant)
  config.base.path = write_base(
    tmp_path / "base", gptj.GPTJ(arch, rngs=nnx.Rngs(0)), tokenizer
  )
  config.data.path = str(tmp_path / "data")
  shrink(config, tmp_path)
  config.answers.num_users = 10
  results = main.train_and_answer(config)
  assert results["reward_accuracy"].keys() == {"vanilla", "pdpo"}
  workers = {str(number + 1) for number in range(10)}
  assert results["reward_accuracy"]["pdpo"]["heldout"]["by_user"].keys() == (
    workers
  )
  assert results["claims"].keys() == {"E1", "E2"}
  shortest = min(results["words"].values())
  assert (shortest > 0) or variant == "individual"


@pytest.mark.slow
def test_a_run_teaches_its_base_first_and_only_once(tmp_path):
  rows = write_tldr(tmp_path / "data")
  tokenizer = tokenize.train_tokenizer(rows, 300)
  arch = gptj.Architecture(len(tokenizer), 20, 2, 2, 28, 6, max_positions=256)
  config = experiment("tldr", "individual")
  config.base.path = ""
  config.sft.path = write_base(
    tmp_path / "given", gptj.GPTJ(arch, rngs=nnx.Rngs(0)), tokenizer
  )
  config.sft.steps, config.sft.warmup_steps = 3, 1
  config.data.path = str(tmp_path / "data")
  # Counted in the tokens of what is taught.
  config.data.tldr.length_unit = "tokens"
  config.vanilla = False
  shrink(config, tmp_path)
  results = main.train_and_answer(config)
  assert "sft" in results["seconds"]
  base = tmp_path / "run" / "base" / "model.safetensors"
  written = base.read_bytes()
  assert written != (tmp_path / "given" / "model.safetensors").read_bytes()
  again = main.train_and_answer(config)
  assert "sft" not in again["seconds"]
  assert base.read_bytes() == written
  assert again["words"] == results["words"]


def write_tldr(folder: pathlib.Path) -> list[str]:
  """Comparisons of twelve workers, in the data set's schema."""
  folder.mkdir()
  texts = []
  for split, count in (("train", 96), ("validation", 48)):
    with (folder / f"{split}.jsonl").open("w") as out:
      for number in range(count):
        post = f"{split} post {number} said so"
        texts.append(post)
        row = {
          "info": {
            "id": f"t3_{split}{number}",
            "post": post,
            "title": "a title",
            "subreddit": "pets",
            "site": None,
            "article": None,
          },
          "summaries": [
            {"text": text, "policy": policy, "note": None}
            for text, policy in (
              (" short one", "sup1"),
              (" a long one", "sup2"),
            )
          ],
          "choice": number % 2,
          "worker": f"worker{number % 12:02}",
          "batch": "batch0",
          "split": split,
          "extra": {"confidence": None},
        }
        out.write(json.dumps(row) + "\n")
  return texts
