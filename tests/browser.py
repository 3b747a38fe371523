"""A person with a taste lives with the page, in a browser.

  pip install playwright
  python -m tests.browser --workdir=runs/quickstart [--taste=short] [--clicks=5]
    [--chromium=/usr/bin/chromium] [--pictures=FOLDER]

Serves a copy of the run, opens its page in headless Chromium as somebody new,
asks what is suggested, takes the answer that they like better, and notes how
long it takes from each click until the answers below are written anew. At the
end they download their choices and are forgotten.

There must be no error in the browser's console, and nothing may stick out of a
phone's screen. Of answers to them at the end, on the questions that were asked,
more must be to their taste than of the generic user's. Ends with status 1
otherwise.
"""

import argparse
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable

from playwright import sync_api

from tests.serving import apart

_MOST_TRIES = 30
_SECONDS = 300_000  # in milliseconds

# How much of what somebody likes a text has.
TASTES: dict[str, Callable[[str], int]] = {
  "short": lambda text: -len(text.split()),
  "long": lambda text: len(text.split()),
  "warm": lambda text: text.count("!"),
}
_SETTLED = """
[...document.querySelectorAll('#compare .text')].every(
  (place) => place.getAttribute('aria-busy') === 'false')
"""


def answer_of(place: sync_api.Locator) -> str:
  text = place.inner_text()
  return "" if text == "(an empty answer)" else text


def click_through(
  page: sync_api.Page, liked: Callable[[str], int], clicks: int
) -> tuple[list[dict], list[str]]:
  """Takes the answer that is liked better, so often; times, and questions."""
  rounds, asked = [], []
  for attempt in range(_MOST_TRIES):
    if len(rounds) == clicks:
      break
    if attempt:
      page.click("#suggest")
      page.wait_for_timeout(300)
    question = page.input_value("#question")
    page.click("#ask button:not(.plain)")
    page.wait_for_function(
      "!document.querySelector('#pair .text[aria-busy=true]')", timeout=_SECONDS
    )
    texts = [answer_of(x) for x in page.locator("#pair .text").all()]
    if page.query_selector("#pair button:disabled"):
      continue  # Both read alike.
    scores = [*map(liked, texts)]
    if scores[0] == scores[1]:
      continue  # They like both as much.
    taken = scores.index(max(scores))
    start = time.monotonic()
    page.keyboard.press("Escape")
    page.locator(f"#pair button[data-take='{taken}']").focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
      "document.getElementById('status').textContent.startsWith('Learnt')",
      timeout=_SECONDS,
    )
    learnt = time.monotonic() - start
    page.wait_for_function(_SETTLED, timeout=_SECONDS)
    asked.append(question)
    rounds.append(
      {
        "learnt_seconds": round(learnt, 2),
        "changed_seconds": round(time.monotonic() - start, 2),
        "certainty": page.inner_text("#percent"),
        "words": [len(x.split()) for x in texts],
        "answers": [
          answer_of(x)[:80] for x in page.locator("#compare .text").all()
        ],
      }
    )
    print(json.dumps(rounds[-1], ensure_ascii=False), flush=True)
  return rounds, asked


def mean_liking(
  server: apart.Server, model: str, user: str, asked, liked
) -> float:
  """Of greedy answers to what was asked."""
  found = []
  for question in asked:
    _, told = server.ask(
      "POST",
      "/v1/chat/completions",
      {
        "model": model,
        "user": user,
        "temperature": 0,
        "messages": [{"role": "user", "content": question}],
      },
      seconds=300,
    )
    found.append(liked(told["choices"][0]["message"]["content"]))
  return statistics.mean(found)


def take_pictures(page: sync_api.Page, folder: pathlib.Path) -> bool:
  """Light, dark and on a phone; whether nothing sticks out of the latter."""
  folder.mkdir(parents=True, exist_ok=True)
  page.screenshot(path=folder / "light.png", full_page=True)
  page.emulate_media(color_scheme="dark")
  page.screenshot(path=folder / "dark.png", full_page=True)
  page.emulate_media(color_scheme="light")
  page.set_viewport_size({"width": 390, "height": 844})
  page.screenshot(path=folder / "phone.png", full_page=True)
  fits = page.evaluate("document.documentElement.scrollWidth") <= 390
  page.set_viewport_size({"width": 1000, "height": 900})
  return fits


def live_with(
  server: apart.Server, flags: argparse.Namespace
) -> tuple[list[dict], list[str]]:
  """What a person lives through, and what is wrong with it."""
  wrong: list[str] = []
  liked = TASTES[flags.taste]
  model = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
  user = f"who likes it {flags.taste}"
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=flags.chromium, args=["--no-sandbox"]
    )
    # The page's policy forbids what Playwright evaluates.
    context = browser.new_context(
      bypass_csp=True, viewport={"width": 1000, "height": 1250}
    )
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"page: {error}"))
    page.goto(f"http://127.0.0.1:{server.port}/")
    # By keyboard alone: the name has the focus.
    page.keyboard.type(user)
    page.keyboard.press("Enter")
    page.wait_for_function(
      "document.getElementById('question').value", timeout=_SECONDS
    )
    # Whoever is unknown is a 404, which a console calls an error.
    page.on(
      "console",
      lambda line: (
        wrong.append(f"console: {line.text}")
        if line.type in ("error", "warning") and "404" not in line.text
        else None
      ),
    )
    rounds, asked = click_through(page, liked, flags.clicks)
    if len(rounds) < flags.clicks:
      wrong.append(f"only {len(rounds)} pairs had one to be liked better")
    if not take_pictures(page, flags.pictures):
      wrong.append("something sticks out of a phone's screen")
    own = mean_liking(server, model, user, asked, liked)
    generic = mean_liking(server, model, "nobody", asked, liked)
    print(f"{flags.taste}: {own:.1f}, of the generic user {generic:.1f}")
    if own <= generic:
      wrong.append("answers are no more to their taste than the generic user's")
    with page.expect_download() as download:
      page.click("#download")
    held = json.loads(pathlib.Path(download.value.path()).read_text())
    if len(held["choices"]) != len(rounds):
      wrong.append("what is downloaded are not their choices")
    page.click("#forget")
    page.click("dialog button[value=yes]")
    page.wait_for_function(
      "document.getElementById('status').textContent.includes('forgotten')",
      timeout=_SECONDS,
    )
    if server.person(user) is not None:
      wrong.append("they are not forgotten")
    browser.close()
  return rounds, wrong


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--taste", choices=TASTES, default="short")
  parser.add_argument("--clicks", type=int, default=5)
  parser.add_argument("--chromium", help="Default: Playwright's own.")
  parser.add_argument("--pictures", type=pathlib.Path, default="pictures")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    shutil.copytree(flags.workdir, folder / flags.workdir.name)
    server = apart.Server(
      folder / flags.workdir.name, "", folder / "log", quick=False
    )
    try:
      server.start()
      server.wait()
      rounds, wrong = live_with(server, flags)
    finally:
      server.stop()
      print((folder / "log").read_text()[-2000:])
  if rounds:
    seconds = sorted(each["changed_seconds"] for each in rounds)
    print(
      f"from a click to a changed answer: p50 {statistics.median(seconds):.1f} "
      f"s, first {rounds[0]['changed_seconds']:.1f} s, most {seconds[-1]:.1f} s"
    )
  if wrong:
    raise SystemExit("\n".join(["wrong:", *wrong]))


if __name__ == "__main__":
  main()
