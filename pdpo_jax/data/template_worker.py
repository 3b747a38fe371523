"""Renders chat templates: a process of its own, with limits.

A template comes with a base, from strangers. Jinja's sandbox keeps it from
running code, but not from looping for ever or from asking for all memory there
is. So `templates.py` starts this file as a script. It imports nothing of the
package, and reads and writes a line of JSON at a time.

  template_worker.py SECONDS BYTES

are the limits of a request: of computing, not of waiting for a busy machine,
and of the whole process.
"""

import datetime
import json
import signal
import sys
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox

# Characters of output, and how often the input's.
CHARACTERS = 4_000_000
TIMES = 20
# Some templates tell the model the date, today's if no other is given: a prompt
# would be another one tomorrow. This is the one Llama 3.1's fall back to.
DATE = datetime.datetime(2024, 7, 26)


class _Limit(BaseException):
  """Not an `Exception`, some of which Jinja handles itself."""


class _Generation(ext.Extension):
  """`{% generation %}` marks what an assistant said, and changes nothing."""

  tags = frozenset(["generation"])

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.Scope(body).set_lineno(line)


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  """As `transformers` makes it; a test compares what they render."""

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, **kwargs):
    return json.dumps(value, ensure_ascii=ensure_ascii, **kwargs)

  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, ext.loopcontrols],
  )
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = DATE.strftime
  return environment


def _describe(error: Exception) -> str:
  if isinstance(error, jinja2.TemplateSyntaxError):
    return f"line {error.lineno}: {error.message}"
  if isinstance(error, jinja2.TemplateError):
    return str(error)
  return f"{type(error).__name__}: {error}"


class Renderer:
  """Answers requests; compiles each template once."""

  def __init__(self):
    self._environment = _environment()
    self._compiled: dict[str, jinja2.Template] = {}

  def answer(self, request: dict[str, Any], room: int) -> dict[str, Any]:
    """Renders dialogues.

    Args:
      request: `template`, `variables`, and `dialogues`, lists of messages.
      room: characters of output.

    Returns:
      `rendered`, a `text` or an `error` for each dialogue; or `limit`, what
      there was too much of; or `broken`, why there is no template.
    """
    try:
      source = request["template"]
      if source not in self._compiled:
        try:
          self._compiled[source] = self._environment.from_string(source)
        except jinja2.TemplateError as error:
          return {"broken": _describe(error)}
      rendered = []
      for messages in request["dialogues"]:
        try:
          text = self._render(source, messages, request["variables"], room)
        except MemoryError:
          raise
        except Exception as error:  # Templates fail as Python does.
          rendered.append({"error": _describe(error)})
        else:
          room -= len(text)
          rendered.append({"text": text})
    except _Limit as limit:
      return {"limit": str(limit)}
    except MemoryError:
      return {"limit": "the memory that it is given"}
    return {"rendered": rendered}

  def _render(self, source, messages, variables, room) -> str:
    pieces = []
    stream = self._compiled[source].generate(messages=messages, **variables)
    for piece in stream:
      pieces.append(piece)
      room -= len(piece)
      if room < 0:
        raise _Limit(f"{CHARACTERS:,} characters of output")
    return "".join(pieces)


def _limit_memory(size: int) -> None:
  try:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size, size))
  except (ImportError, ValueError, OSError):
    pass  # macOS knows no such limit; that of time is left.


def main() -> None:
  seconds, memory = map(int, sys.argv[1:])

  def stop(*_):
    raise _Limit(f"{seconds} seconds")

  _limit_memory(memory)
  signal.signal(signal.SIGPROF, stop)
  renderer = Renderer()
  for line in sys.stdin:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
      reply = renderer.answer(json.loads(line), CHARACTERS + TIMES * len(line))
      signal.setitimer(signal.ITIMER_PROF, 0)
    except _Limit as limit:
      reply = {"limit": str(limit)}
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
  main()
