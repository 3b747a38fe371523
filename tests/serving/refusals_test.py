"""What cannot be answered is told in OpenAI's form, and never as a 500."""

import json

import openai
import pytest

from pdpo_jax.serving import guard
from tests.serving import served


@pytest.mark.parametrize(
  ("values", "param"),
  [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    (
      {"messages": [*served.TURNS, {"role": "assistant", "content": "x"}]},
      "messages",
    ),
    (
      {"messages": [*served.TURNS, {"role": "system", "content": "x"}]},
      "messages",
    ),
    (
      {
        "messages": [
          {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "x"}}],
          }
        ]
      },
      "messages",
    ),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 50}, "stop"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"user": "a\x00b"}, "user"),
    ({"user": "x" * 5000}, "user"),
  ],
)
def test_what_cannot_be_is_refused_with_the_field(client, values, param):
  with pytest.raises(openai.BadRequestError) as error:
    served.chat(client, **values)
  assert error.value.param == param
  assert error.value.type == "invalid_request_error"
  assert param in error.value.message or error.value.message


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"stop": [""]}, "stop.0: String should have at least 1 character"),
    ({"stop": ["x"] * 50}, "stop: List should have at most 16 items"),
    ({"stop": 5}, "stop: Input should be a valid string"),
    (
      {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
      "messages.0.content.0.type: Input should be 'text'",
    ),
    ({"top_logprobs": 2}, "the body: top_logprobs needs logprobs true"),
  ],
)
def test_of_the_forms_of_a_field_the_one_that_was_meant_is_told(
  at, values, message
):
  body = {"model": at.room.model, "messages": served.TURNS} | values
  status, told = served.ask(at, "POST", "/v1/chat/completions", body)
  assert status == 400
  assert told["error"]["message"].startswith(message)


_BODIES = {
  "chat/completions": {"messages": served.TURNS},
  "pairs": {"messages": served.TURNS},
  "completions": {"prompt": "x"},
}
_NUMBERS = (
  "best_of",
  "n",
  "max_tokens",
  "temperature",
  "top_p",
  "top_k",
  "seed",
)


@pytest.mark.parametrize("path", _BODIES)
@pytest.mark.parametrize(
  ("field", "value"),
  [
    *((name, value) for name in _NUMBERS for value in (True, "1", [1])),
    *((name, 1.5) for name in ("n", "max_tokens", "top_k", "seed")),
    *(
      (name, value)
      for name in ("stream", "unlike")
      for value in (1, 0, "yes", "true")
    ),
    ("stream_options", {"include_usage": "yes"}),
    ("stop", 1),
    ("user", 7),
    ("model", 7),
  ],
)
def test_a_value_of_a_wrong_type_is_refused_with_the_field(
  at, path, field, value
):
  body = {"model": at.room.model} | _BODIES[path] | {field: value}
  status, told = served.ask(at, "POST", f"/v1/{path}", body)
  assert status == 400, told
  assert told["error"]["param"] == field


@pytest.mark.parametrize(
  ("path", "field", "value"),
  [
    ("chat/completions", "logprobs", 1),
    ("chat/completions", "logprobs", "true"),
    ("chat/completions", "top_logprobs", "2"),
    ("chat/completions", "max_completion_tokens", True),
    ("chat/completions", "messages", "hello"),
    ("completions", "logprobs", True),
    ("completions", "logprobs", "2"),
    ("completions", "prompt", 5),
    ("completions", "prompt", [True]),
    ("completions", "prompt", [1, "2"]),
    ("completions", "prompt", [[True]]),
    ("choices", "user", 7),
    ("choices", "prompt", 7),
    ("choices", "chosen", True),
    ("choices", "rejected", [1]),
    ("choices", "thumb", True),
  ],
)
def test_so_is_one_of_a_field_that_one_route_has(at, path, field, value):
  known = {"model": at.room.model, **_BODIES.get(path, {})}
  if path == "choices":
    known = {"user": "gus", "prompt": "a", "chosen": "b", "rejected": "c"}
  status, told = served.ask(at, "POST", f"/v1/{path}", known | {field: value})
  assert status == 400, told
  assert told["error"]["param"] == field


def test_a_whole_number_is_good_where_a_fraction_may_be(at):
  body = {"model": at.room.model, "messages": served.TURNS, "max_tokens": 1}
  body |= {"temperature": 1, "top_p": 1, "stream": False, "logprobs": True}
  assert served.ask(at, "POST", "/v1/chat/completions", body)[0] == 200


# What would change an answer: values that are on, and that are off.
_NOT_DONE = {
  "frequency_penalty": ([1, "0", False], [0, 0.0]),
  "presence_penalty": ([0.5, True], [0, 0.0]),
  "repetition_penalty": ([1.3, 0, True], [1, 1.0]),
  "length_penalty": ([0.8], [1]),
  "min_p": ([0.1], [0, 0.0]),
  "use_beam_search": ([True, 0], [False]),
  "best_of": ([2, 0], [1]),
  "logit_bias": ([{"5": 10}], [{}]),
  "allowed_token_ids": ([[1]], [[]]),
  "bad_words": ([["x"]], [[]]),
  "min_tokens": ([5], [0]),
  "ignore_eos": ([True], [False]),
  "stop_token_ids": ([[1]], [[]]),
  "include_stop_str_in_output": ([True], [False]),
  "guided_json": ([{"type": "object"}, "{}"], []),
  "guided_regex": (["a*"], []),
  "guided_choice": ([["a", "b"]], []),
  "structured_outputs": ([{"regex": "a"}], []),
  "modalities": ([["audio"], ["text", "audio"]], [["text"]]),
  "audio": ([{"voice": "alloy", "format": "wav"}], []),
  "prediction": ([{"type": "content", "content": "x"}], []),
  "tools": ([[{"type": "function", "function": {"name": "f"}}], {}], [[]]),
  "tool_choice": (
    ["required", {"type": "function", "function": {"name": "f"}}],
    ["none", "auto"],
  ),
  "functions": ([[{"name": "f"}]], [[]]),
  "function_call": ([{"name": "f"}], ["none", "auto"]),
  "web_search_options": ([{}], []),
  "reasoning_effort": (["low", "high"], ["none"]),
  "verbosity": (["low"], ["medium"]),
  "echo": ([True, 0], [False]),
  "suffix": (["y"], [""]),
  "prompt_logprobs": ([0, 1], []),
  "skip_special_tokens": ([False], [True]),
  "truncate_prompt_tokens": ([5], []),
  "chat_template": (["x"], []),
  "chat_template_kwargs": ([{"enable_thinking": False}], [{}]),
  "continue_final_message": ([True], [False]),
  "add_generation_prompt": ([False], [True]),
}


@pytest.mark.parametrize("path", _BODIES)
@pytest.mark.parametrize("field", _NOT_DONE)
def test_what_would_change_an_answer_is_refused_where_it_is_on(at, path, field):
  body = {"model": at.room.model, "max_tokens": 1} | _BODIES[path]
  on, off = _NOT_DONE[field]
  for value in on:
    status, told = served.ask(at, "POST", f"/v1/{path}", body | {field: value})
    assert status == 400, value
    assert told["error"]["param"] == field
    assert told["error"]["message"].startswith(f"{field}: ")
  for value in (*off, None):
    status, _ = served.ask(at, "POST", f"/v1/{path}", body | {field: value})
    assert status == 200, value


def test_special_tokens_are_those_of_the_route(at):
  for path, usual in (("chat/completions", False), ("completions", True)):
    for value in (usual, None, not usual):
      body = {"model": at.room.model, "max_tokens": 1} | _BODIES[path]
      body["add_special_tokens"] = value
      status, _ = served.ask(at, "POST", f"/v1/{path}", body)
      assert status == (400 if value is (not usual) else 200), (path, value)


def test_what_changes_no_answer_is_let_pass(at):
  body = {"model": at.room.model, "max_tokens": 1} | _BODIES["completions"]
  body |= {"metadata": {"a": "b"}, "store": True, "service_tier": "flex"}
  body |= {"parallel_tool_calls": False, "prompt_cache_key": "k", "priority": 3}
  assert served.ask(at, "POST", "/v1/completions", body)[0] == 200


def test_a_refusal_says_what_would_be_let_pass(at):
  body = {"model": at.room.model} | _BODIES["completions"]
  for values, message in (
    ({"min_p": 0.1}, "min_p: 0.1 is not done here; leave the field out, or "
     "give 0"),
    ({"guided_json": {}}, "guided_json: such an object is not done here; leave "
     "the field out"),
    ({"best_of": 3, "n": 2}, "best_of: 3 has to be n, 2"),
  ):  # fmt: skip
    _, told = served.ask(at, "POST", "/v1/completions", body | values)
    assert told["error"]["message"].startswith(message)


@pytest.mark.parametrize(
  ("path", "values", "param"),
  [
    ("chat/completions", {"max_tokens": 10**5}, "max_tokens"),
    (
      "chat/completions",
      {"max_completion_tokens": 10**5},
      "max_completion_tokens",
    ),
    (
      "chat/completions",
      {"max_completion_tokens": 10**5, "max_tokens": 1},
      "max_completion_tokens",
    ),
    ("pairs", {"max_tokens": 10**5}, "max_tokens"),
    ("completions", {"max_tokens": 10**5}, "max_tokens"),
    ("completions", {"prompt": [[1], [1, 1]], "max_tokens": 124}, "max_tokens"),
    ("completions", {"prompt": [1] * 500}, "prompt"),
    ("completions", {"prompt": [1] * 500, "max_tokens": 5}, "prompt"),
    ("completions", {"prompt": [10**6], "max_tokens": 5}, "prompt"),
  ],
)
def test_what_has_no_room_is_told_by_the_field_that_was_sent(
  at, path, values, param
):
  body = {"model": at.room.model} | _BODIES[path] | values
  status, told = served.ask(at, "POST", f"/v1/{path}", body)
  assert status == 400
  assert told["error"]["param"] == param
  message = told["error"]["message"]
  assert "max_new_tokens" not in message
  if param != "prompt":
    assert f"{param} {values[param]} is more" in message
    least = int(message.partition(f"lower {param} to ")[2].split(",")[0])
    status, _ = served.ask(
      at, "POST", f"/v1/{path}", body | {param: least, "stop": " "}
    )
    assert status == 200


@pytest.mark.parametrize(
  "turns",
  [
    [],
    [{"role": "user", "content": ""}],
    [{"role": "alien", "content": "x"}],
    [{"role": "assistant", "content": "x"}],
    [*served.TURNS, {"role": "system", "content": "x"}, *served.TURNS],
  ],
)
@pytest.mark.parametrize("field", ["messages", "prompt"])
def test_a_dialogue_that_cannot_be_is_told_by_its_field(at, field, turns):
  path, body = "pairs", {"model": at.room.model, "messages": turns}
  if field == "prompt":
    body = {"user": "gus", "prompt": turns, "chosen": "b", "rejected": "c"}
    path = "choices"
  status, told = served.ask(at, "POST", f"/v1/{path}", body)
  assert status == 400
  assert told["error"]["param"] == field


def test_an_unknown_model_is_not_found(client):
  with pytest.raises(openai.NotFoundError) as error:
    served.chat(client, model="gpt-5")
  assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
  ("method", "path", "body", "status"),
  [
    ("POST", "/v1/chat/completions", b"{", 400),
    ("POST", "/v1/chat/completions", b"[]", 400),
    ("POST", "/v1/chat/completions", b"", 400),
    ("POST", "/v1/chat/completions", b'{"a": ' * 5000, 400),
    ("POST", "/v1/chat/completions", b"\xff\xfe", 400),
    ("POST", "/v1/chat/completions", b'{"model": "\\ud800"}', 400),
    (
      "POST",
      "/v1/chat/completions",
      b'{"model": "run", "messages": [], "top_p": NaN}',
      400,
    ),
    ("GET", "/v1/chat/completions", None, 405),
    ("POST", "/v1/models", b"{}", 405),
    ("GET", "/v1/none", None, 404),
    ("GET", "/none", None, 404),
    ("POST", "/v1/chat/completions", b" " * (guard._MOST + 1), 413),
  ],
)
def test_errors_have_openais_form(at, method, path, body, status):
  got, content, _ = served.call(at, method, path, body)
  assert got == status
  error = json.loads(content)["error"]
  assert {*error} == {"message", "type", "param", "code"}
  assert error["message"]


def test_the_description_has_the_errors_that_there_are(at):
  _, description = served.ask(at, "GET", "/openapi.json")
  for path, methods in description["paths"].items():
    for method, told in methods.items():
      answers = told["responses"]
      assert "422" not in answers, (path, method)
      (kind,) = answers["4XX"]["content"].values()
      assert kind["schema"]["$ref"].endswith("/ErrorBody"), (path, method)
