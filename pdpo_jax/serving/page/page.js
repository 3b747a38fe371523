// The page: who asks, two answers, a click, and what was learnt from it.
// Whatever people or the model wrote is put in as text, never as markup.

const $ = (id) => document.getElementById(id);
const state = {
  model: "", user: "", key: "", question: "", texts: ["", ""],
  asked: new Set(), round: 0,
};

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function call(path, options = {}) {
  const headers = {"content-type": "application/json"};
  if (state.key) headers.authorization = `Bearer ${state.key}`;
  const answer = await fetch(path, {...options, headers});
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-field").hidden = false;
  let message = `The server answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* It is no JSON. */ }
  const error = new Error(message);
  error.status = answer.status;
  throw error;
}

const person = () => `v1/people/${encodeURIComponent(state.user)}`;

// Calls `heard(index, text)` for each piece of an answer as it comes.
async function stream(path, body, heard, signal) {
  const answer = await call(path, {
    method: "POST", signal,
    body: JSON.stringify({
      model: state.model, stream: true,
      messages: [{role: "user", content: state.question}], ...body,
    }),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") continue;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new Error(parsed.error.message);
      for (const choice of parsed.choices) {
        heard(choice.index, choice.delta.content ?? "");
      }
    }
  }
}

function show(place, text, busy) {
  place.setAttribute("aria-busy", String(busy));
  place.classList.toggle("nothing", !busy && !text.trim());
  place.textContent = busy || text.trim() ? text.trim() : "(an empty answer)";
}

let asking = new AbortController();

async function ask() {
  asking.abort();
  asking = new AbortController();
  state.round += 1;
  state.question = $("question").value;
  state.asked.add(state.question);
  state.texts = ["", ""];
  const places = [...$("pair").querySelectorAll(".text")];
  const buttons = [...$("pair").querySelectorAll("button")];
  for (const article of $("pair").querySelectorAll("article")) {
    article.classList.remove("taken");
  }
  buttons.forEach((button) => { button.disabled = true; });
  $("pair").hidden = false;
  places.forEach((place) => show(place, "", true));
  say("Two answers are being written …");
  // The same seed for both, so that only who they are for tells them apart.
  const seed = Math.floor(Math.random() * 2 ** 31);
  try {
    await stream("v1/pairs", {user: state.user, seed}, (index, text) => {
      state.texts[index] += text;
      show(places[index], state.texts[index], true);
    }, asking.signal);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
    return;
  }
  places.forEach((place, index) => show(place, state.texts[index], false));
  const plain = state.texts.map((text) => text.trim().replace(/\s+/g, " ").toLowerCase());
  if (plain[0] === plain[1]) {
    say("Both read alike, so there is nothing to choose. Ask something else.");
    return;
  }
  buttons.forEach((button) => { button.disabled = false; });
  say("Take the one that you like better.");
}

async function take(index) {
  const buttons = [...$("pair").querySelectorAll("button")];
  if (buttons[index].disabled) return;
  buttons.forEach((button) => { button.disabled = true; });
  buttons[index].closest("article").classList.add("taken");
  const body = {
    user: state.user, prompt: state.question,
    chosen: state.texts[index], rejected: state.texts[1 - index],
  };
  let kept;
  try {
    kept = await (await call("v1/choices", {
      method: "POST", body: JSON.stringify(body),
    })).json();
  } catch (error) {
    say(error.message, true);
    buttons.forEach((button) => { button.disabled = false; });
    return;
  }
  if (!kept.learns) {
    say("Kept for the next training, since you were in the last one.");
    await refresh();
    await compare();
    return;
  }
  say("Kept. Learning from it …");
  const round = state.round;
  await untilLearnt(kept.num_choices);
  if (round !== state.round) return;
  say("Learnt. Another one?");
  await compare();
}

async function untilLearnt(count) {
  for (let tries = 0; tries < 240; tries += 1) {
    const known = await refresh();
    if (known?.learnt?.num_choices >= count) return;
    await new Promise((done) => setTimeout(done, 500));
  }
}

// What is known of the person; null for nothing.
async function refresh() {
  let known = null;
  try {
    known = await (await call(person())).json();
  } catch (error) {
    if (error.status !== 404) say(error.message, true);
  }
  $("learnt").hidden = known === null;
  if (known === null) return null;
  const since = known.since ? ` since ${known.since.slice(0, 16)}` : "";
  const choices = `${known.num_choices} choice${known.num_choices === 1 ? "" : "s"}`;
  $("summary").textContent = {
    trained: `You were in the training of this model; ${choices} since then.`,
    learnt: `From ${choices}${since}.`,
    waiting: `${choices}${since}; I am learning from them.`,
  }[known.known];
  const sure = known.learnt?.certainty;
  $("sure").hidden = sure === undefined;
  $("certainty").value = sure ?? 0;
  $("percent").textContent = `${Math.round(100 * (sure ?? 0))}%`;
  $("traits").replaceChildren(...(known.traits ?? []).map((trait) => {
    const item = document.createElement("li");
    item.textContent = `You took the answer that was ${phrase(trait.took)} in `
      + `${trait.times} of ${trait.of} choices between them.`;
    return item;
  }));
  return known;
}

function phrase(took) {
  return {
    "more lists": "more of a list", "fewer lists": "less of a list",
    "more questions": "asking more back", "fewer questions": "asking less back",
  }[took] ?? took;
}

async function compare() {
  $("compare").hidden = false;
  $("as-you").textContent = state.user;
  const places = [...$("compare").querySelectorAll(".text")];
  const whose = [{user: state.user}, {}, {user: state.user, unlike: true}];
  const texts = ["", "", ""];
  try {
    await Promise.all(whose.map(async (body, column) => {
      show(places[column], "", true);
      await stream("v1/chat/completions", {...body, temperature: 0}, (_, text) => {
        texts[column] += text;
        show(places[column], texts[column], true);
      });
      show(places[column], texts[column], false);
    }));
  } catch (error) {
    say(error.message, true);
  }
}

async function suggest(tries = 60) {
  const path = `v1/questions?user=${encodeURIComponent(state.user)}`;
  const {data} = await (await call(path)).json();
  const texts = data.filter((each) => typeof each === "string");
  const next = texts.find((text) => !state.asked.has(text)) ?? texts[0];
  if (next !== undefined) {
    state.asked.add(next);
    $("question").value = next;
  } else if (tries) {
    // They are being looked for since the server started.
    $("question").placeholder = "Type a question, or wait for a suggestion.";
    setTimeout(() => {
      if (!$("question").value) attempt(() => suggest(tries - 1))();
    }, 2000);
  }
}

async function enter() {
  state.user = $("name").value.trim();
  state.key = $("key").value.trim();
  state.asked.clear();
  try {
    state.model = (await (await call("v1/models")).json()).data[0].id;
    $("model").textContent = state.model;
    const known = await refresh();
    say(known ? `Welcome back, ${state.user}.` : `Hello, ${state.user}. I know nothing of you yet.`);
    $("ask").hidden = false;
    $("pair").hidden = $("compare").hidden = true;
    await suggest();
    $("question").focus();
  } catch (error) {
    say(error.message, true);
  }
}

async function download() {
  const dossier = await (await call(`${person()}/export`)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(dossier);
  link.download = "choices.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function forget() {
  say("Forgetting …");
  await call(person(), {method: "DELETE"});
  $("learnt").hidden = $("pair").hidden = $("compare").hidden = true;
  state.asked.clear();
  say(`${state.user} is forgotten.`);
}

const attempt = (work) => (event) => {
  event?.preventDefault();
  Promise.resolve(work(event)).catch((error) => say(error.message, true));
};

$("who").addEventListener("submit", attempt(enter));
$("ask").addEventListener("submit", attempt(ask));
$("suggest").addEventListener("click", attempt(() => suggest()));
$("download").addEventListener("click", attempt(download));
$("forget").addEventListener("click", () => $("sure-forget").showModal());
$("sure-forget").addEventListener("close", () => {
  if ($("sure-forget").returnValue === "yes") attempt(forget)();
  $("sure-forget").returnValue = "";
});
for (const button of $("pair").querySelectorAll("button")) {
  button.addEventListener("click", attempt(() => take(Number(button.dataset.take))));
}
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "1" || event.key === "2") attempt(() => take(Number(event.key) - 1))();
});

// A link such as /?name=ann opens the page as ann.
const name = new URLSearchParams(location.search).get("name");
if (name) {
  $("name").value = name;
  attempt(enter)();
} else {
  $("name").focus();
}
