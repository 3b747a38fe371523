"""What is shown to be chosen from can be chosen, and learnt from."""

import asyncio
import collections
import dataclasses
import json
import shutil
import threading

import pytest

from pdpo_jax.core import kept, structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.inference import asking
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import learnable
from tests.runs.people_run import ANN
from tests.serving import served

MOST = 12
CHAT = (
  "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>"
  "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module", params=["auto", CHAT], ids=["plain", "chat"])
def at(whole, tmp_path_factory, request):
  folder = shutil.copytree(whole, tmp_path_factory.mktemp("served") / "run")
  config = json.loads((folder / "config.json").read_text())
  config["data"]["max_response_tokens"] = MOST
  config["data"]["template"] = request.param
  kept.write_json(folder / "config.json", config)
  with served.room_of(folder) as room, served.listening(room) as place:
    yield place


def ask_pair(at, **values):
  """Two texts, and why each ended."""
  body = {"model": "run", "messages": served.TURNS, "temperature": 1.5}
  _, content, _ = served.call(at, "POST", "/v1/pairs", body | values)
  if not values.get("stream"):
    choices = json.loads(content)["choices"]
    return [
      (each["message"]["content"], each["finish_reason"]) for each in choices
    ]
  texts, ends = ["", ""], [None, None]
  for event in content.decode().split("\n\n"):
    if event in ("", "data: [DONE]"):
      continue
    for each in json.loads(event.removeprefix("data: "))["choices"]:
      texts[each["index"]] += each["delta"].get("content") or ""
      ends[each["index"]] = each["finish_reason"] or ends[each["index"]]
  return [*zip(texts, ends, strict=True)]


@pytest.mark.parametrize("user", [ANN, "nobody"])
@pytest.mark.parametrize(
  "values",
  [{}, {"max_tokens": 60}, {"stop": ["e", "zz"]}, {"temperature": 0}],
  ids=str,
)
def test_an_answer_of_a_pair_is_never_refused_as_a_choice(at, user, values):
  ends = collections.Counter()
  for seed in range(12):
    values = values | {"user": user, "seed": seed}
    pair = ask_pair(at, **values)
    assert ask_pair(at, **values, stream=True) == pair
    ends.update(end for _, end in pair)
    texts = [text for text, _ in pair]
    if asking.plain(texts[0]) == asking.plain(texts[1]):
      continue
    for chosen, rejected in (texts, texts[::-1]):
      status, told = served.ask(
        at,
        "POST",
        "/v1/choices",
        {
          "user": f"{user} of {values}",
          "prompt": served.PROMPT,
          "chosen": chosen,
          "rejected": rejected,
        },
      )
      assert status == 201, (told, texts)
  assert {*ends} <= {"stop", "length"} and ends["length"]


def test_log_probabilities_are_of_what_is_told(at):
  body = {"model": "run", "messages": served.TURNS, "temperature": 1.5}
  body |= {"logprobs": True, "max_tokens": 60}
  for seed in range(6):
    _, told = served.ask(at, "POST", "/v1/pairs", body | {"seed": seed})
    for choice in told["choices"]:
      tokens = choice["logprobs"]["content"]
      text = bytes(x for token in tokens for x in token["bytes"]).decode(
        errors="replace"
      )
      assert text.startswith(choice["message"]["content"])


def test_a_chat_may_be_longer_than_what_is_learnt_from(at):
  body = {"model": "run", "messages": served.TURNS, "max_tokens": 60}
  body |= {"temperature": 0, "ignore_eos": False}
  _, told = served.ask(at, "POST", "/v1/chat/completions", body)
  assert told["usage"]["completion_tokens"] > MOST


@pytest.mark.parametrize("template", ["plain", CHAT])
@pytest.mark.parametrize("most", [1, 2, 9, 40])
@pytest.mark.parametrize(
  "pieces",
  [
    ["word"] * 60,
    [" word"] * 60,
    ["\ufffd"] * 60,
    ["\n"] * 30 + ["x"] * 60,
    [" ", "x", "  ", "\n\n", "é", "😀"] * 10,
    ["a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3],
  ],
)
def test_an_answer_is_taken_as_far_as_it_fits(whole, template, most, pieces):
  run = run_lib.Run.open(whole)
  data = dataclasses.replace(run.config.data, template=template)
  encoder = prompts_lib.make_encoder(run.tokenizer, data)
  counts = collections.Counter()
  (prompt,) = encoder.encode_prompts([structs.PromptExample("x")], counts)

  def count(text):
    ((ids,),) = encoder.encode_responses([prompt], [(text,)], counts)
    return len(ids)

  answer = learnable.Learnable(encoder, prompt, most, threading.Lock())
  text = ""
  for piece in pieces:
    takes = asyncio.run(answer.takes(piece))
    assert takes == (count(text + piece) <= most)
    if not takes:
      break
    text += piece
  assert not takes and count(text) <= most


def test_what_a_template_refuses_is_not_cut(whole, monkeypatch):
  run = run_lib.Run.open(whole)
  encoder = prompts_lib.make_encoder(run.tokenizer, run.config.data)
  (prompt,) = encoder.encode_prompts(
    [structs.PromptExample("x")], collections.Counter()
  )
  monkeypatch.setattr(encoder, "encode_responses", lambda *_: [[None]])
  answer = learnable.Learnable(encoder, prompt, 2, threading.Lock())
  assert all(asyncio.run(answer.takes("words " * 9)) for _ in range(3))
