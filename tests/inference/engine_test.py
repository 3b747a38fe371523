import asyncio
import dataclasses
import threading
import time

import numpy as np
import pytest

from pdpo_jax.inference import engine, generate, prefixes, programs, sampling
from pdpo_jax.models import llama
from tests.inference import tiny

PIECE = 5
COLUMNS = 48


def make_engine(model, **sizes):
  sizes = {"slots": 3, "positions": COLUMNS, "queue": 9, "piece": PIECE} | sizes
  return engine.Engine(model, stop_tokens=tiny.STOPS, **sizes)


def mixed_requests(model, count=7, **fields):
  """Users and prompt lengths mixed: shorter than a piece, and of several."""
  rng = np.random.default_rng(0)
  lengths = [1, 5, 17, 2, 11, 6, 23]
  return [
    engine.Request(
      rng.integers(0, 101, length).tolist(),
      prefixes.of_row(model, row % tiny.NUM_ROWS),
      13,
      seed=row,
      **fields,
    )
    for row, length in enumerate(lengths[:count])
  ]


def generated(model, requests):
  """What `generate` says to the same; those of one kind are a batch."""
  answers = {}
  kinds = {}
  for row, request in enumerate(requests):
    kinds.setdefault((request.temperature, request.top_p, request.top_k), [])
    kinds[request.temperature, request.top_p, request.top_k].append(row)
  for (temperature, top_p, top_k), rows in kinds.items():
    texts = generate.generate(
      model,
      [
        generate.Request(
          np.asarray(requests[row].prompt),
          requests[row].seed % tiny.NUM_ROWS,
          requests[row].seed,
        )
        for row in rows
      ],
      sampling.AnswersConfig(
        max_new_tokens=13, temperature=temperature, top_p=top_p, top_k=top_k
      ),
      stop_tokens=tiny.STOPS,
      pad_id=0,
      batch_size=8,
    )
    answers.update(zip(rows, texts, strict=True))
  return [answers[row].tolist() for row in range(len(requests))]


def ids(stream):
  return [token.id for token in stream]


@pytest.mark.parametrize(
  ("preset", "kind", "prefix_position"),
  [
    ("gptj-tiny", "individual", "after_bos"),
    ("llama-tiny", "individual", "front"),
    ("llama-tiny", "cluster", "after_bos"),
    ("llama-tiny", "none", "front"),
  ],
)
def test_greedy_tokens_are_those_of_generate(preset, kind, prefix_position):
  model = tiny.make_policy(preset, kind, prefix_position)
  requests = mixed_requests(model)
  with make_engine(model) as running:
    streams = [running.submit(request) for request in requests]
    answers = [ids(stream) for stream in streams]
  assert answers == generated(model, requests)
  assert len({token for answer in answers for token in answer}) > 10
  reasons = {stream.finish_reason for stream in streams}
  assert reasons == {"stop", "length"}


SETTINGS = [
  {"temperature": 1.0},
  {"temperature": 1.5, "top_k": 40, "top_p": 0.9},
  {"temperature": 1.5, "top_k": 40, "top_p": 0.9},
  {},
  {"temperature": 1.0, "top_p": 0.5},
  {"temperature": 1.0},
  {},
]


def test_sampled_tokens_are_those_of_generate_whatever_else_runs():
  model = tiny.make_policy("llama-tiny")
  requests = [
    dataclasses.replace(request, **settings)
    for request, settings in zip(mixed_requests(model), SETTINGS, strict=True)
  ]
  expected = generated(model, requests)
  with make_engine(model) as running:
    for _ in range(2):
      streams = [running.submit(request) for request in requests]
      assert [ids(stream) for stream in streams] == expected
      requests, expected = requests[::-1], expected[::-1]
    assert [ids(running.submit(request)) for request in requests] == expected


def test_programs_are_compiled_at_the_start_and_never_again(monkeypatch):
  traced = []
  hidden = llama.Llama.hidden

  def counted(self, embeddings, *args, **kwargs):
    traced.append(embeddings.shape[:2])
    return hidden(self, embeddings, *args, **kwargs)

  monkeypatch.setattr(llama.Llama, "hidden", counted)
  monkeypatch.setattr(programs, "extents", lambda columns, *_: [13, columns])
  model = tiny.make_policy("llama-tiny", seed=1)
  with make_engine(model, slots=2, piece=4, queue=20) as running:
    # One asks for the shapes of the cache.
    assert traced == [(1, 1), *[(1, 4)] * 2, *[(2, 1)] * 2]
    requests = mixed_requests(model)
    wants = [
      dataclasses.replace(request, top_logprobs=row, temperature=row / 2)
      for row, request in enumerate(requests)
    ]
    for stream in [running.submit(r) for r in (*requests, *wants)]:
      ids(stream)
  assert len(traced) == 5


def test_pieces_of_the_four_oldest_go_before_a_step(monkeypatch):
  model = tiny.make_policy("llama-tiny", seed=1)
  requests = [
    engine.Request([7] * length, prefixes.of_row(model, 1), 13)
    for length in (1, *[PIECE + 1] * 5)
  ]
  events = []

  def tell(name, what):
    ran = getattr(programs, name)

    def run(*args, **kwargs):
      events.append(what(*args))
      return ran(*args, **kwargs)

    monkeypatch.setattr(programs, name, run)

  with make_engine(model, slots=6) as running:
    running._stop_tokens = frozenset()
    held = hold(running)
    streams = [running.submit(requests[0])]
    while not running.status().prompt_tokens:  # The next is its first step.
      time.sleep(0.001)
    tell("run_piece", lambda *args: str(args[5]))
    tell("step", lambda *_: ".")
    streams += [running.submit(request) for request in requests[1:]]
    held.set()
    for stream in streams:
      ids(stream)
  pieces, steps = "".join(events)[:16], "".join(events)[16:]
  assert (pieces, set(steps)) == (".1234.1234.5.5..", {"."})


def test_answers_are_the_same_however_few_columns_are_read(monkeypatch):
  monkeypatch.setattr(programs, "extents", lambda columns, *_: [8, 16, columns])
  model = tiny.make_policy("llama-tiny", seed=1)
  requests = mixed_requests(model)
  with make_engine(model, slots=2, piece=4, queue=20) as running:
    found = [ids(x) for x in [running.submit(each) for each in requests]]
  assert found == generated(model, requests)


def test_extents_are_few():
  assert programs.extents(1000, 128, 2) == [128, 256, 512, 1000]
  assert programs.extents(128, 128, 2) == [128]
  assert programs.extents(7, 128, 4) == [7]
  assert programs.extents(1000, 128, 2, 333) == [128, 256, 1000]


def test_log_probabilities_are_the_models_own():
  model = tiny.make_policy("llama-tiny")
  request = dataclasses.replace(
    mixed_requests(model)[1], temperature=2.0, top_k=2, top_logprobs=20
  )
  plain = dataclasses.replace(request, top_logprobs=None)
  few = dataclasses.replace(request, top_logprobs=2)
  none = dataclasses.replace(request, top_logprobs=0)
  with make_engine(model, slots=4) as running:
    streams = [running.submit(each) for each in (request, plain, few, none)]
    told, silent, fewer, chosen = map(list, streams)
  assert all(token.logprob is None and token.top == () for token in silent)
  assert [len(token.top) for token in fewer] == [2] * len(told)
  assert [token.top for token in chosen] == [()] * len(told)
  for token, short, own in zip(told, fewer, chosen, strict=True):
    top = dict(token.top)
    values = list(top.values())
    assert len(top) == 20 and values == sorted(values, reverse=True)
    assert short.top == token.top[:2]
    # Of top_k 2, sampled at another temperature than they are told at.
    assert token.logprob == top[token.id] == short.logprob == own.logprob
    assert token.id in list(top)[:2]
    assert 0.5 < np.exp(values).sum() <= 1.0001


def test_the_queue_has_a_limit_and_cancelling_makes_room():
  model = tiny.make_policy("llama-tiny")
  request = dataclasses.replace(mixed_requests(model)[0], max_new_tokens=13)
  with make_engine(model, slots=1, queue=2) as running:
    held = hold(running)
    streams = [running.submit(request) for _ in range(3)]
    with pytest.raises(engine.Full, match="2 requests wait for one of 1 slots"):
      running.submit(request)
    streams[1].cancel()
    streams.append(running.submit(request))
    held.set()
    answers = [ids(stream) for stream in streams]
  assert answers[0] == answers[2] == answers[3] != []
  assert answers[1] == [] and streams[1].finish_reason == "cancelled"


def hold(running):
  """Keeps the engine from stepping until the event is set."""
  event, step = threading.Event(), running._step

  def wait_and_step():
    event.wait(60)
    step()

  running._step = wait_and_step
  return event


def test_who_is_cancelled_while_running_frees_the_slot():
  model = tiny.make_policy("llama-tiny")
  long = dataclasses.replace(
    mixed_requests(model)[2], max_new_tokens=25, temperature=1e9
  )
  with make_engine(model, slots=1) as running:
    running._stop_tokens = frozenset()
    stream, after = running.submit(long), running.submit(long)
    first = next(stream)
    stream.cancel()
    rest = ids(stream)
    assert stream.finish_reason == "cancelled" and len(rest) < 24
    answer = ids(after)
    assert len(answer) == 25 and answer[0] == first.id
    status = running.status()
  assert (status.running, status.waiting) == (0, 0)


def test_a_coroutine_may_read():
  model = tiny.make_policy("llama-tiny")
  requests = mixed_requests(model, temperature=1.0)

  async def read(running, request):
    stream = running.submit(request)
    return [token.id async for token in stream], stream.finish_reason

  async def read_all(running):
    return await asyncio.gather(*(read(running, each) for each in requests))

  with make_engine(model) as running:
    found = asyncio.run(read_all(running))
  answers, reasons = zip(*found, strict=True)
  assert list(answers) == generated(model, requests)
  assert set(reasons) == {"stop", "length"}


def test_a_reader_who_left_does_not_stop_the_others():
  model = tiny.make_policy("llama-tiny")
  request = mixed_requests(model)[1]

  async def leave(running):
    stream = running.submit(request)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    reading.cancel()

  with make_engine(model) as running:
    held = hold(running)
    asyncio.run(leave(running))
    stream = running.submit(request)
    held.set()
    assert ids(stream) == generated(model, mixed_requests(model)[:2])[1]


def test_a_failure_reaches_everybody():
  model = tiny.make_policy("llama-tiny")
  requests = mixed_requests(model)
  running = make_engine(model)
  calls = []

  def fail():
    calls.append(1)
    if len(calls) == 3:
      raise FloatingPointError("broken")
    step()

  step, running._step = running._step, fail
  held = hold(running)
  streams = [running.submit(request) for request in requests]
  held.set()
  for stream in streams:
    with pytest.raises(engine.Stopped, match=r"died.*broken") as caught:
      ids(stream)
    assert isinstance(caught.value.__cause__, FloatingPointError)
  with pytest.raises(engine.Stopped, match=r"died.*broken"):
    running.submit(requests[0])
  assert isinstance(running.failure, FloatingPointError)
  running.close()


def test_closing_ends_everybody():
  model = tiny.make_policy("llama-tiny")
  with make_engine(model) as running:
    held = hold(running)
    streams = [running.submit(request) for request in mixed_requests(model)]
    threading.Timer(0.1, held.set).start()
  for stream in streams:
    with pytest.raises(engine.Stopped, match="closed"):
      ids(stream)
  with pytest.raises(engine.Stopped, match="closed"):
    running.submit(mixed_requests(model)[0])
  running.close()


def test_any_number_that_settings_take_is_harmless(idle):
  request = mixed_requests(tiny.make_policy("llama-tiny"))[1]
  for settings in (
    {"temperature": 1e-300},
    {"temperature": 1e300},
    {"temperature": 1.0, "top_k": 10**30},
    {"temperature": 1.0, "top_p": 1e-300},
    {"temperature": 1.0, "seed": 2**32 - 1},
  ):
    ids(idle.submit(dataclasses.replace(request, **settings)))
  assert idle.failure is None


def test_no_new_tokens_are_an_empty_answer():
  model = tiny.make_policy("llama-tiny")
  with make_engine(model) as running:
    stream = running.submit(
      dataclasses.replace(mixed_requests(model)[0], max_new_tokens=0)
    )
    assert ids(stream) == [] and stream.finish_reason == "length"


def test_the_longest_request_that_fits_is_answered():
  model = tiny.make_policy("gptj-tiny")
  request = dataclasses.replace(
    mixed_requests(model)[0],
    prompt=[5] * 20,
    max_new_tokens=COLUMNS - 3 - 20,
    temperature=1e9,
  )
  with make_engine(model) as running:
    running._stop_tokens = frozenset()
    assert len(ids(running.submit(request))) == COLUMNS - 23
    with pytest.raises(
      ValueError, match=r"49 positions are needed .3 of the pe"
    ):
      running.submit(dataclasses.replace(request, prompt=[5] * 21))


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("prompt", [], "one or more"),
    ("prompt", [1, 101], "prompt token 101"),
    ("prompt", [-1], "prompt token -1"),
    ("prompt", [2**70], "object"),
    ("prefix", None, "prefix has shape None"),
    ("prefix", np.zeros((2, 28)), r"\(2, 28\)"),
    ("prefix", np.full((3, 28), np.nan), "finite"),
    ("prefix", np.full((3, 28), 1e39), "finite"),
    ("temperature", -0.1, "temperature -0.1"),
    ("temperature", float("inf"), "temperature inf"),
    ("top_p", 0.0, "top_p 0.0"),
    ("top_k", -1, "top_k -1"),
    ("seed", -1, "seed -1"),
    ("seed", 2**32, "seed 4294967296"),
    ("max_new_tokens", -1, "max_new_tokens -1"),
    ("top_logprobs", 21, "top_logprobs 21"),
    ("top_logprobs", -1, "top_logprobs -1"),
  ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_request_that_cannot_be_names_its_bad_field(
  idle, field, value, message
):
  request = mixed_requests(tiny.make_policy("llama-tiny"))[0]
  with pytest.raises(ValueError, match=message):
    idle.submit(dataclasses.replace(request, **{field: value}))


@pytest.fixture(scope="module")
def idle():
  with make_engine(tiny.make_policy("llama-tiny")) as running:
    yield running


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"slots": 0}, "slots 0 must be 1"),
    ({"queue": -1}, "queue -1 must be 0"),
    ({"positions": 129}, "positions 129 are more than the model's 128"),
  ],
)
def test_an_engine_that_cannot_be_says_why(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_engine(tiny.make_policy("llama-tiny"), **sizes)


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_a_learnt_row_has_the_prefix_that_it_would_have_in_the_table(kind):
  model = tiny.make_policy("llama-tiny", kind)
  users = model.user_model
  table = users.offsets if kind == "individual" else users.weights
  np.testing.assert_array_equal(
    prefixes.of_learnt(model, np.asarray(table[...][2])),
    prefixes.of_row(model, 2),
  )
  assert not np.array_equal(
    prefixes.of_row(model, 2), prefixes.of_row(model, 0)
  )
  with pytest.raises(ValueError, match=r"row 5 is outside .* 5 rows"):
    prefixes.of_row(model, 5)
  with pytest.raises(ValueError, match=r"shape \(1,\) and must be of \("):
    prefixes.of_learnt(model, np.zeros(1))


def test_nobody_has_no_prefix():
  model = tiny.make_policy("llama-tiny", "none")
  assert prefixes.of_row(model, 0) is None
  assert prefixes.of_learnt(model, np.zeros(0)) is None
