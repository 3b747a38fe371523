"""Sends a server requests that its OpenAPI description allows, and others.

  pip install schemathesis
  python -m tests.server_fuzz [--requests=10000] [--schemathesis=PATH]

The description is that of the server, but that its models are the run and
people of it, so that not all of it is refused at once. Requests are counted by
the server's own metrics: those that reached it. No answer may have a status of
500 or above, and the server's log no traceback. Ends with status 1 otherwise.
"""

import argparse
import collections
import json
import pathlib
import re
import subprocess
import tempfile
import time
import urllib.request

from tests.runs import people_run
from tests.serving import apart

_COUNT = re.compile(
  r'^pdpo_requests_total\{route="(.*?)",status="(\d+)"\} (\S+)$', re.MULTILINE
)
_MODELS = ["run", f"run:{people_run.ANN}", f"run:{people_run.BEA}", "run:x"]


def describe(server: apart.Server, file: pathlib.Path) -> None:
  """Writes the server's description, with names of models that it has."""
  _, description = server.ask("GET", "/openapi.json")
  for schema in description["components"]["schemas"].values():
    if "model" in schema.get("properties", {}):
      schema["properties"]["model"]["enum"] = _MODELS
  file.write_text(json.dumps(description))


def counts(server: apart.Server) -> collections.Counter[tuple[str, int]]:
  """Requests by route and status, as the server counts them."""
  url = f"http://127.0.0.1:{server.port}/metrics"
  with urllib.request.urlopen(url, timeout=60) as answer:
    text = answer.read().decode()
  return collections.Counter(
    {
      (route, int(status)): int(float(count))
      for route, status, count in _COUNT.findall(text)
    }
  )


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--requests", type=int, default=10_000)
  parser.add_argument("--schemathesis", default="schemathesis")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--examples", type=int, default=100)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    server = apart.Server(people_run.make(folder), "", folder / "log")
    description, seed = folder / "openapi.json", flags.seed
    try:
      server.start()
      server.wait()
      describe(server, description)
      start = time.monotonic()
      while (total := counts(server)).total() < flags.requests:
        subprocess.run(
          [
            flags.schemathesis,
            "run",
            str(description),
            f"--url=http://127.0.0.1:{server.port}",
            "--checks=not_a_server_error",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--max-examples={flags.examples}",
            f"--seed={seed}",
            "--workers=4",
            "--continue-on-failure",
            "--suppress-health-check=all",
            "--request-timeout=60",
          ],
          stdout=(folder / "fuzz").open("a"),
          stderr=subprocess.STDOUT,
          check=False,
        )
        seed += 1
        done = counts(server)
        if done.total() == total.total():
          raise RuntimeError((folder / "fuzz").read_text()[-3000:])
        print(
          f"{done.total():,} after {time.monotonic() - start:.0f} s", flush=True
        )
    finally:
      server.stop()
    log = (folder / "log").read_text()
    fuzz = (folder / "fuzz").read_text()
  by_status = collections.Counter()
  for (_, status), count in total.items():
    by_status[status] += count
  by_route = collections.Counter()
  for (route, _), count in total.items():
    by_route[route] += count
  print(json.dumps({"by_status": by_status, "by_route": by_route}, indent=1))
  if "Traceback" in log or any(status >= 500 for status in by_status):
    raise SystemExit(f"failed:\n{log[-5000:]}\n{fuzz[-5000:]}")
  print(f"{total.total():,} requests, none of which the server failed at")


if __name__ == "__main__":
  main()
