import builtins
import contextlib
import dataclasses
import socket
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.inference import engine, remote, remote_server
from tests.inference import engine_test, tiny, vllm_double

# The client leaves generators of answers that nobody reads on to the collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)
COLUMNS = engine_test.COLUMNS


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
  monkeypatch.setattr(remote, "_torch_to_base64", lambda: vllm_double.to_base64)


@contextlib.contextmanager
def behind(model, **sizes):
  """A server, and what asks it."""
  server = vllm_double.Server(model)
  with server.listening() as url, open_remote(url, model, **sizes) as running:
    yield server, running


def open_remote(url, model, **sizes):
  sizes = {"slots": 3, "positions": COLUMNS, "queue": 9} | sizes
  return remote.RemoteEngine(url, model, stop_tokens=tiny.STOPS, **sizes)


def wait_until(holds):
  end = time.monotonic() + 20
  while not holds():
    assert time.monotonic() < end
    time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("preset", "kind", "prefix_position"),
  [
    ("gptj-tiny", "individual", "after_bos"),
    ("llama-tiny", "individual", "front"),
    ("llama-tiny", "none", "front"),
  ],
)
def test_greedy_tokens_are_those_of_generate(preset, kind, prefix_position):
  model = tiny.make_policy(preset, kind, prefix_position)
  requests = engine_test.mixed_requests(model)
  with behind(model) as (_, running):
    streams = [running.submit(request) for request in requests]
    answers = [engine_test.ids(stream) for stream in streams]
    reasons = {stream.finish_reason for stream in streams}
    status = running.status()
  assert answers == engine_test.generated(model, requests)
  assert reasons == {"stop", "length"}
  assert status == engine.Status(
    slots=3,
    running=0,
    waiting=0,
    prompt_tokens=sum(
      len(each.prompt) + model.user_model.num_tokens for each in requests
    ),
    new_tokens=sum(map(len, answers)),
  )


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_engine():
  model = tiny.make_policy("llama-tiny")
  for count in (0, 1, 4):
    requests = engine_test.mixed_requests(model, top_logprobs=count)
    with engine_test.make_engine(model) as here:
      expected = [[*here.submit(request)] for request in requests]
    with behind(model) as (_, running):
      found = [[*running.submit(request)] for request in requests]
    for ours, theirs in zip(expected, found, strict=True):
      assert [x.id for x in ours] == [x.id for x in theirs]
      for one, other in zip(ours, theirs, strict=True):
        assert other.logprob == pytest.approx(one.logprob, abs=1e-4)
        assert [id for id, _ in one.top] == [id for id, _ in other.top]
        assert len(other.top) == count
        np.testing.assert_allclose(
          [x for _, x in other.top], [x for _, x in one.top], atol=1e-4
        )


def test_settings_are_passed_on():
  model = tiny.make_policy("llama-tiny")
  (request,) = engine_test.mixed_requests(model, 1)
  with behind(model) as (server, running):
    server.asked.clear()
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 5}
    [*running.submit(dataclasses.replace(request, **settings))]
    [*running.submit(dataclasses.replace(request, top_logprobs=0))]
  first, second = server.asked
  assert {name: first[name] for name in settings} == settings
  assert first["max_tokens"] == 13 and first["model"] == "merged"
  assert first["stop_token_ids"] == sorted(tiny.STOPS)
  assert first["logprobs"] is None and second["logprobs"] == 0
  assert second["top_k"] == -1  # off


def test_whoever_is_beyond_the_queue_is_refused_and_closing_ends_everybody():
  model = tiny.make_policy("llama-tiny")
  requests = engine_test.mixed_requests(model)
  with behind(model, slots=2, queue=1) as (server, running):
    server.pause = 1.0
    streams = [running.submit(request) for request in requests[2:5]]
    with pytest.raises(engine.Full, match="1 requests wait for one of 2 slots"):
      running.submit(requests[0])
    wait_until(lambda: running.status().running == 2)
    assert running.status().waiting == 1
    running.close()
    for stream in streams:
      with pytest.raises(engine.Stopped, match="closed"):
        engine_test.ids(stream)
    with pytest.raises(engine.Stopped, match="closed"):
      running.submit(requests[0])
    wait_until(lambda: server.running == 0)


def test_who_is_cancelled_is_answered_no_more():
  model = tiny.make_policy("llama-tiny")
  (request,) = engine_test.mixed_requests(model, 1)
  request = dataclasses.replace(request, max_new_tokens=30)
  with behind(model, slots=1) as (server, running):
    server.pause = 0.1
    first, second = running.submit(request), running.submit(request)
    next(first)
    first.cancel()
    server.pause = 0.0
    assert len(engine_test.ids(second)) > 0
    wait_until(lambda: server.running == 0)
    assert running.status().running == running.status().waiting == 0


def test_an_answer_that_breaks_off_is_told_and_the_next_one_is_made():
  model = tiny.make_policy("llama-tiny")
  requests = engine_test.mixed_requests(model)
  expected = engine_test.generated(model, requests)
  with behind(model) as (server, running):
    for problem in ("breaks off", "fails", "no ids"):
      server.problem = problem
      with pytest.raises(engine.Stopped, match="did not answer"):
        engine_test.ids(running.submit(requests[2]))
      assert running.failure is None
    server.problem = ""
    assert engine_test.ids(running.submit(requests[2])) == expected[2]


def test_a_server_that_went_is_noticed_and_so_is_its_return():
  model = tiny.make_policy("llama-tiny")
  (request,) = engine_test.mixed_requests(model, 1)
  server = vllm_double.Server(model)
  with server.listening() as url:
    running = open_remote(url, model)
  with running:
    with pytest.raises(engine.Stopped, match="did not answer"):
      engine_test.ids(running.submit(request))
    assert running.failure is not None
    with server.listening() as other:
      running._client.base_url = f"{other}/v1"
      assert engine_test.ids(running.submit(request))
      assert running.failure is None


def test_what_can_never_be_answered_is_an_error():
  model = tiny.make_policy("llama-tiny")
  (request,) = engine_test.mixed_requests(model, 1)
  with behind(model) as (server, running):
    for changes in (
      {"prompt": [101]},
      {"prefix": None},
      {"max_new_tokens": COLUMNS},
    ):
      with pytest.raises(ValueError):
        running.submit(dataclasses.replace(request, **changes))
    nothing = running.submit(dataclasses.replace(request, max_new_tokens=0))
    assert engine_test.ids(nothing) == []
    assert len(server.asked) == 1  # of the start


@pytest.mark.parametrize(
  ("problem", "message"),
  [
    ("no vLLM", "is no vLLM: it does not say how long"),
    ("no model", "has no model"),
    ("no embeddings", "takes no embeddings .*--enable-prompt-embeds"),
    ("another model", "another model than the run's: .* differ by 1.00"),
    ("no ids", "tells no token ids; take vLLM"),
    ("fails", "is no vLLM that answers as one .*EngineCore died"),
  ],
)
def test_what_is_wrong_with_a_server_is_told_at_the_start(problem, message):
  model = tiny.make_policy("llama-tiny")
  server = vllm_double.Server(model)
  server.problem = problem
  threads = threading.active_count()
  with server.listening() as url:
    with pytest.raises(ValueError, match=message) as caught:
      open_remote(url, model)
    assert str(caught.value).startswith(f"--engine {url}/v1 ")
  assert threading.active_count() <= threads


def test_positions_and_keys_are_checked_at_the_start(monkeypatch):
  model = tiny.make_policy("llama-tiny")
  server = vllm_double.Server(model, key="secret", positions=COLUMNS - 1)
  with server.listening() as url:
    with pytest.raises(ValueError, match=r"wants another key.*PDPO_ENGINE_KEY"):
      open_remote(url, model)
    monkeypatch.setenv(remote_server.PDPO_ENGINE_KEY, "secret")
    with pytest.raises(
      ValueError, match=f"--max-model-len={COLUMNS}, or give --positions=47"
    ):
      open_remote(url, model)
    with open_remote(f"{url}/v1/", model, positions=COLUMNS - 1):
      pass


@pytest.mark.parametrize(
  "url", ["vllm", "localhost:8001", "ftp://a/b", "http://", "", "http:///v1"]
)
def test_what_is_no_address_is_an_error(url):
  with pytest.raises(ValueError, match="is neither 'jax' nor an address"):
    open_remote(url, tiny.make_policy("llama-tiny"))


def test_where_nobody_answers_the_start_says_so():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  with pytest.raises(ValueError, match=f"127.0.0.1:{port}/v1 does not answer"):
    open_remote(f"http://127.0.0.1:{port}", tiny.make_policy("llama-tiny"))


def test_without_torch_the_start_says_so(monkeypatch):
  monkeypatch.undo()
  imports = builtins.__import__

  def without(name, *others, **more):
    if name == "torch":
      raise ImportError(name)
    return imports(name, *others, **more)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(ValueError, match=r"needs torch.*pip install torch"):
    open_remote("http://127.0.0.1:1", tiny.make_policy("llama-tiny"))


def test_vectors_are_of_prompt_and_prefix_in_its_place():
  model = tiny.make_policy("llama-tiny", "individual", "after_bos")
  requests = engine_test.mixed_requests(model)
  with behind(model) as (_, running):
    for request in requests:
      run = running._limits.run(request)
      tokens = np.asarray(model.lm.embed(jnp.asarray(request.prompt)))
      expected = np.concatenate([tokens[:1], request.prefix, tokens[1:]])
      np.testing.assert_allclose(running._vectors(run), expected, rtol=1e-6)
