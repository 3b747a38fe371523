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
_NUMBERS = ("n", "max_tokens", "temperature", "top_p", "top_k", "seed")


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
    ("completions", "best_of", True),
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
