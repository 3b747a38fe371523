"""Who may ask, and what is told to whoever watches."""

import json

from tests.runs.people_run import ANN
from tests.serving import served


def test_a_page_of_others_cannot_post(at):
  body = {"model": "run", "messages": served.TURNS, "max_tokens": 1}
  status, *_ = served.call(
    at, "POST", "/v1/chat/completions", body, content_type="text/plain"
  )
  assert status == 400


def test_health_and_metrics_name_nobody(at, client):
  served.chat(client, user=ANN)
  assert served.call(at, "GET", "/health")[0] == 200
  status, content, _ = served.call(at, "GET", "/metrics")
  assert status == 200 and ANN.encode() not in content
  assert b"pdpo_new_tokens_total" in content
  assert b'route="/v1/chat/completions",status="200"' in content


def test_a_key_is_needed_where_there_is_one(at):
  with served.listening(at.room, key="sésame") as locked:
    for given in (None, "Bearer no", "Basic s", "Bearer", "Bearer sesame"):
      headers = {"authorization": given} if given else {}
      status, content, told = served.call(
        locked, "GET", "/v1/models", **headers
      )
      assert status == 401 and told["www-authenticate"] == "Bearer"
      assert json.loads(content)["error"]["code"] == "invalid_api_key"
    key = "Bearer sésame".encode().decode("latin-1")
    assert served.call(locked, "GET", "/v1/models", authorization=key)[0] == 200
    assert served.call(locked, "GET", "/health")[0] == 200


def test_a_server_of_this_machine_is_called_by_no_other_name(at):
  with served.listening(at.room, hosts=("localhost", "127.0.0.1")) as local:
    assert served.call(local, "GET", "/health")[0] == 200
    assert served.call(local, "GET", "/health", host="localhost:80")[0] == 200
    for host in ("evil.example", "localhost.evil.example", "[", ""):
      assert served.call(local, "GET", "/health", host=host)[0] == 403
