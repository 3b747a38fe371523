"""A server on loopback that speaks OpenAI's chat completions, and misbehaves.

  python -m tests.evaluation.judge.judge_server JOURNAL URL

judges `many_questions()` at that address, for tests that kill it.
"""

import collections
import contextlib
import hashlib
import http.server
import json
import pathlib
import sys
import threading
import time

from pdpo_jax.core import structs
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import evidence, journal, questions, services

# Far more than an answer takes on a busy machine.
TIMEOUT = 1.0
CONCURRENCY = 16
NOBODY = evidence.Evidence(structs.Persona(), "", ())


class Server:
  """Answers on a free port, for as long as the context is entered.

  Args:
    say: the answer to a request's user prompt.
    faults: what goes wrong with tries, in turns: a status, "slow", "garbage",
      "empty", "null" or "drop"; None goes well. Which turn a prompt begins with
      depends on the prompt.
    refuses: of a request, the error that it is refused with, or None.
  """

  def __init__(
    self,
    say=lambda user: "Because.\nOutput (a)",
    faults=(None,),
    retry_after=0.02,
    refuses=lambda request: None,
  ):
    self.say, self.faults, self.refuses = say, faults, refuses
    self.retry_after = retry_after
    self.tries = collections.Counter()
    self.delivered = collections.Counter()
    self.requests = []
    self.seen = collections.Counter()
    self.lock = threading.Lock()

  @contextlib.contextmanager
  def running(self):
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        owner.handle(self)

      def log_message(self, *arguments):
        pass

    class Quiet(http.server.ThreadingHTTPServer):
      request_queue_size = 64

      def handle_error(self, request, address):
        pass  # A client that was killed, or gave up waiting.

    with Quiet(("127.0.0.1", 0), Handler) as server:
      thread = threading.Thread(target=server.serve_forever)
      thread.start()
      try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
      finally:
        server.shutdown()
        thread.join()

  def handle(self, handler):
    length = int(handler.headers["content-length"])
    request = json.loads(handler.rfile.read(length))
    user = request["messages"][-1]["content"]
    with self.lock:
      start = hashlib.sha256(user.encode()).digest()[0]
      refused = self.refuses(request)
      fault = self.faults[(start + self.tries[user]) % len(self.faults)]
      fault = "refused" if refused else fault
      self.tries[user] += 1
      self.seen[fault] += 1
      self.requests.append((handler.path, request, time.monotonic()))
    if fault == "drop":
      handler.close_connection = True
      return
    status, headers = 200, {}
    body = {
      "id": "1",
      "object": "chat.completion",
      "created": 1,
      "model": request["model"],
      "choices": [
        {
          "index": 0,
          "finish_reason": "stop",
          "message": {"role": "assistant", "content": self.say(user)},
        }
      ],
      "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }
    if isinstance(fault, int):
      status, body = fault, {"error": {"message": "not now", "code": None}}
      headers = (
        {"retry-after": str(self.retry_after)} if fault in (429, 503) else {}
      )
    elif refused:
      status, body = refused
    elif fault == "slow":
      time.sleep(1.5 * TIMEOUT)
    elif fault == "empty":
      body["choices"] = []
    elif fault == "null":
      body["choices"][0]["message"]["content"] = None
    data = b"<html>oops" if fault == "garbage" else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    for name, value in headers.items():
      handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()
    if fault is None:
      with self.lock:
        self.delivered[user] += 1


def config_of(url, **fields):
  values = {
    "kind": "openai",
    "model": "some-model",
    "base_url": url,
    "timeout": TIMEOUT,
    "concurrency": CONCURRENCY,
  }
  return judge_config.JudgeConfig(**values | fields)


def many_questions(count=250):
  return [
    questions.Question(
      f"s{number}",
      f"u{number % 50}",
      f"Question {number}?",
      "",
      f"ours {number}",
      f"theirs {number} at length",
      NOBODY,
    )
    for number in range(count)
  ]


if __name__ == "__main__":
  services.FIRST_WAIT = 0.01
  journal.judge(
    many_questions(), config_of(sys.argv[2]), pathlib.Path(sys.argv[1])
  )
