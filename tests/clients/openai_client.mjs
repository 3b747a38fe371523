// What OpenAI's client for Node is told by a server, good and bad.
//
//   npm install openai
//   node tests/clients/openai_client.mjs http://127.0.0.1:8000/v1 MODEL [PERSON]
//
// MODEL is what the server calls its model, PERSON somebody whom it knows. Without
// one, requests about people are left out, so that any server can be asked. Each
// request has a line with its outcome; ends with status 1 if one is not as
// expected. PDPO_API_KEY in the environment is the key, if there is one.

import assert from "node:assert/strict";
import OpenAI, {toFile} from "openai";

const [baseURL, model, person] = process.argv.slice(2);
const apiKey = process.env.PDPO_API_KEY ?? "none";
const client = new OpenAI({baseURL, apiKey, maxRetries: 0, timeout: 60_000});
const ask = "Why is the sky blue?";
const turns = [{role: "user", content: ask}];
const chat = (values = {}, options = {}) => client.chat.completions.create(
  {model, messages: turns, max_tokens: 6, temperature: 0, ...values}, options);
const complete = (values = {}) => client.completions.create(
  {model, prompt: ask, max_tokens: 6, temperature: 0, ...values});

const cases = [];
const add = (name, act) => cases.push({name, act});
// Needs somebody whom the server knows.
const addPerson = (name, act) => { if (person) add(name, act); };

// What is refused, with its status and the field that is named.
function refused(name, act, status = 400, field = null) {
  add(name, async () => {
    let error = null;
    try {
      await act();
    } catch (caught) {
      error = caught;
    }
    assert.ok(error, "is not refused");
    assert.ok(error instanceof OpenAI.APIError, `${error}`);
    assert.equal(error.status, status, error.message);
    assert.ok(error.message.length > 5 && error.type, "without a message or a type");
    if (field) assert.equal(error.param, field);
  });
}

async function gather(stream) {
  const found = {texts: {}, ends: {}, chunks: 0, usage: null};
  for await (const chunk of stream) {
    found.chunks += 1;
    if (chunk.usage) found.usage = chunk.usage;
    for (const choice of chunk.choices) {
      const piece = choice.delta ? choice.delta.content : choice.text;
      found.texts[choice.index] = (found.texts[choice.index] ?? "") + (piece ?? "");
      if (choice.finish_reason) found.ends[choice.index] = choice.finish_reason;
    }
  }
  return found;
}
const text = (answer) => answer.choices[0].message.content;

// Chats.
add("a chat", async () => {
  const answer = await chat();
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.equal(typeof text(answer), "string");
  assert.equal(answer.usage.total_tokens,
    answer.usage.prompt_tokens + answer.usage.completion_tokens);
});
add("an id, a time and the model", async () => {
  const answer = await chat();
  assert.ok(answer.id && answer.created > 1.6e9);
  assert.equal(answer.model, model);
});
add("greedy, twice the same", async () =>
  assert.equal(text(await chat()), text(await chat())));
for (const most of [1, 3]) {
  add(`max_tokens ${most}`, async () => {
    const answer = await chat({max_tokens: most});
    assert.equal(answer.usage.completion_tokens, most);
    assert.equal(answer.choices[0].finish_reason, "length");
  });
  add(`max_completion_tokens ${most}`, async () => {
    const answer = await chat(
      {max_tokens: undefined, max_completion_tokens: most});
    assert.equal(answer.usage.completion_tokens, most);
  });
}
add("n 3", async () => {
  const answer = await chat({n: 3, temperature: 1, seed: 1});
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
});
for (const seed of [0, 7, -1, Number.MAX_SAFE_INTEGER]) {
  add(`seed ${seed}, twice the same`, async () => {
    const values = {seed, temperature: 1, max_tokens: 8};
    assert.equal(text(await chat(values)), text(await chat(values)));
  });
}
add("another seed, another answer", async () => {
  const texts = new Set();
  for (const seed of [1, 2, 3, 4]) {
    texts.add(text(await chat({seed, temperature: 1.5, max_tokens: 16})));
  }
  assert.ok(texts.size > 1);
});
add("top_p 0 is greedy", async () =>
  assert.equal(text(await chat({temperature: 1, top_p: 0})), text(await chat())));
add("stop, a text", async () => {
  const whole = text(await chat({max_tokens: 12}));
  const stop = whole.slice(Math.floor(whole.length / 2)).slice(0, 2);
  const answer = await chat({max_tokens: 12, stop});
  assert.equal(text(answer), whole.slice(0, whole.indexOf(stop)));
  assert.equal(answer.choices[0].finish_reason, "stop");
});
add("stop, several", async () => {
  const answer = await chat({stop: ["\u0001", "a", "e", " "], max_tokens: 12});
  assert.ok(!/[ae ]/.test(text(answer)));
});
add("a system message", async () =>
  assert.ok((await chat({messages: [
    {role: "system", content: "Be short."}, ...turns]})).choices));
add("a developer message", async () =>
  assert.ok((await chat({messages: [
    {role: "developer", content: "Be short."}, ...turns]})).choices));
add("several turns", async () =>
  assert.ok((await chat({messages: [
    ...turns, {role: "assistant", content: "Ask me."}, ...turns]})).choices));
add("parts of text", async () => {
  const parts = [{type: "text", text: ask}];
  const answer = await chat({messages: [{role: "user", content: parts}]});
  assert.equal(text(answer), text(await chat()));
});
add("emoji and other scripts", async () =>
  assert.ok((await chat({messages: [
    {role: "user", content: "Grüße 東京 👩‍👩‍👧 नमस्ते"}]})).choices));
add("logprobs", async () => {
  const {content} = (await chat({logprobs: true})).choices[0].logprobs;
  assert.ok(content.length && content.every((x) => x.logprob <= 0));
  assert.ok(content.every((x) => Array.isArray(x.bytes)));
});
add("top_logprobs 3, the best first", async () => {
  const {content} =
    (await chat({logprobs: true, top_logprobs: 3})).choices[0].logprobs;
  for (const token of content) {
    assert.equal(token.top_logprobs.length, 3);
    assert.equal(token.top_logprobs[0].token, token.token);
  }
});
add("no logprobs where nobody asks", async () =>
  assert.equal((await chat()).choices[0].logprobs ?? null, null));
add("fields that nobody knows", async () =>
  assert.ok((await chat({whatever: {a: 1}, store: false, metadata: {a: "b"}}))
    .choices));
add("penalties of 0", async () =>
  assert.ok((await chat({frequency_penalty: 0, presence_penalty: 0})).choices));
add("response_format text", async () =>
  assert.ok((await chat({response_format: {type: "text"}})).choices));

// Streams.
add("a stream is the whole", async () => {
  const whole = await chat({max_tokens: 12});
  const found = await gather(await chat({max_tokens: 12, stream: true}));
  assert.equal(found.texts[0], text(whole));
  assert.equal(found.ends[0], whole.choices[0].finish_reason);
  assert.equal(found.usage, null);
});
add("a stream with usage", async () => {
  const {usage} = await chat();
  const found = await gather(
    await chat({stream: true, stream_options: {include_usage: true}}));
  assert.equal(found.usage.completion_tokens, usage.completion_tokens);
  assert.equal(found.usage.prompt_tokens, usage.prompt_tokens);
});
add("a stream, n 2", async () => {
  const values = {n: 2, seed: 3, temperature: 1};
  const whole = await chat(values);
  const found = await gather(await chat({...values, stream: true}));
  assert.deepEqual(Object.values(found.texts),
    whole.choices.map((choice) => choice.message.content));
});
add("a stream with a stop", async () => {
  const stop = [" ", "e"];
  const found = await gather(await chat({stop, stream: true, max_tokens: 12}));
  assert.ok(!/[e ]/.test(found.texts[0]));
});
add("a stream with logprobs", async () => {
  let count = 0;
  for await (const chunk of await chat({stream: true, logprobs: true})) {
    count += chunk.choices[0]?.logprobs?.content?.length ?? 0;
  }
  assert.ok(count > 0);
});
add("a stream that is left, and another request", async () => {
  const stream = await chat({stream: true, max_tokens: 40});
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    break;
  }
  stream.controller.abort();
  assert.ok((await chat()).choices);
});
add("the client's own gathering of a stream", async () => {
  const answer = await client.chat.completions.stream(
    {model, messages: turns, max_tokens: 6, temperature: 0}).finalChatCompletion();
  assert.equal(text(answer), text(await chat()));
});
add("eight at once, each its own", async () => {
  const seeds = [1, 2, 3, 4, 5, 6, 7, 8];
  const values = (seed) => ({seed, temperature: 1});
  const alone = [];
  for (const seed of seeds) alone.push(text(await chat(values(seed))));
  const together = await Promise.all(seeds.map((seed) => chat(values(seed))));
  assert.deepEqual(together.map(text), alone);
});

// Completions.
add("a completion", async () => {
  const answer = await complete();
  assert.equal(answer.object, "text_completion");
  assert.equal(typeof answer.choices[0].text, "string");
});
add("completions of two prompts", async () => {
  const answer = await complete({prompt: [ask, "Once upon a time"]});
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1]);
});
add("a completion of token ids", async () =>
  assert.ok((await complete({prompt: [5, 6, 7, 8]})).choices));
add("completions of lists of token ids", async () =>
  assert.equal((await complete({prompt: [[5, 6, 7], [8, 9]]})).choices.length, 2));
add("a completion, streamed", async () => {
  const found = await gather(await complete({stream: true}));
  assert.equal(found.texts[0], (await complete()).choices[0].text);
});
add("a completion with logprobs", async () => {
  const {logprobs, text: said} = (await complete({logprobs: 2})).choices[0];
  assert.equal(logprobs.tokens.join(""), said);
  assert.equal(logprobs.tokens.length, logprobs.text_offset.length);
});

// Models.
add("the list of models", async () => {
  const ids = [];
  for await (const each of client.models.list()) ids.push(each.id);
  assert.ok(ids.includes(model));
});
add("one model", async () =>
  assert.equal((await client.models.retrieve(model)).id, model));
refused("a model that is not there", () => client.models.retrieve("gpt-5"), 404);

// What is refused.
refused("another model in a chat", () => chat({model: "gpt-5"}), 404);
refused("no messages", () => chat({messages: []}), 400, "messages");
refused("messages that are none", () => chat({messages: "hello"}), 400, "messages");
refused("a role that is none",
  () => chat({messages: [{role: "alien", content: "x"}]}), 400, "messages");
refused("a message without content",
  () => chat({messages: [{role: "user"}]}), 400, "messages");
refused("an image",
  () => chat({messages: [{role: "user", content: [
    {type: "image_url", image_url: {url: "data:image/png;base64,AA"}}]}]}),
  400, "messages");
refused("temperature -1", () => chat({temperature: -1}), 400, "temperature");
refused("temperature 3", () => chat({temperature: 3}), 400, "temperature");
refused("temperature as a text", () => chat({temperature: "hot"}), 400, "temperature");
refused("top_p 2", () => chat({top_p: 2}), 400, "top_p");
refused("n 0", () => chat({n: 0}), 400, "n");
refused("n 1000", () => chat({n: 1000}), 400, "n");
refused("max_tokens 0", () => chat({max_tokens: 0}), 400, "max_tokens");
refused("max_tokens beyond all", () => chat({max_tokens: 1e9}), 400, "max_tokens");
refused("top_logprobs without logprobs", () => chat({top_logprobs: 2}));
refused("top_logprobs 100",
  () => chat({logprobs: true, top_logprobs: 100}), 400, "top_logprobs");
refused("a stop that is empty", () => chat({stop: ""}), 400, "stop");
refused("a frequency_penalty",
  () => chat({frequency_penalty: 1}), 400, "frequency_penalty");
refused("logit_bias", () => chat({logit_bias: {5: 10}}), 400, "logit_bias");
refused("tools",
  () => chat({tools: [{type: "function", function: {name: "f"}}]}), 400, "tools");
refused("JSON mode",
  () => chat({response_format: {type: "json_object"}}), 400, "response_format");
refused("half a character",
  () => chat({messages: [{role: "user", content: "cut \ud83d"}]}), 400, "messages");
add("a prompt beyond all is refused, or said to be cut", async () => {
  const messages = [{role: "user", content: "word ".repeat(150_000)}];
  try {
    assert.equal((await chat({messages})).prompt_cut, true);
  } catch (error) {
    assert.equal(error.status, 400, error.message);
  }
});
refused("a body beyond all",
  () => chat({messages: [{role: "user", content: "x".repeat(2 ** 21)}]}), 413);
refused("an empty completion", () => complete({prompt: ""}));
refused("token ids that are none", () => complete({prompt: [1e8]}));
refused("echo", () => complete({echo: true}), 400, "echo");
refused("best_of", () => complete({best_of: 3}));
refused("embeddings, which are not served",
  () => client.embeddings.create({model, input: ask}), 404);
refused("files, which are not served", async () =>
  client.files.create({file: await toFile(Buffer.from("x"), "x.txt"),
    purpose: "assistants"}), 404);

// People.
addPerson("the field user", async () => {
  const {data, response} = await chat({user: person}).withResponse();
  assert.deepEqual(data.person, {id: person, known: true});
  assert.equal(response.headers.get("pdpo-person"), "known");
});
addPerson("safety_identifier", async () =>
  assert.equal((await chat({safety_identifier: person})).person.known, true));
addPerson("a header", async () => {
  const headers = {"pdpo-user": encodeURIComponent(person)};
  assert.equal((await chat({}, {headers})).person.id, person);
});
addPerson("a model's name", async () =>
  assert.equal((await chat({model: `${model}:${person}`})).person.id, person));
addPerson("somebody unknown, who is told so", async () =>
  assert.equal((await chat({user: "nobody"})).person.known, false));
addPerson("a person's model", async () =>
  assert.equal((await client.models.retrieve(`${model}:${person}`)).id,
    `${model}:${person}`));
addPerson("a choice, and what is known of who made it", async () => {
  const user = `node ${Date.now()} ü/<b>`;
  const path = `/people/${encodeURIComponent(user)}`;
  const body = {user, prompt: ask, chosen: "So.", rejected: "Because of it."};
  const kept = await client.post("/choices", {body});
  assert.deepEqual([kept.new, kept.num_choices], [true, 1]);
  assert.equal((await client.post("/choices", {body})).new, false);
  assert.equal((await client.get(path)).num_choices, 1);
  assert.equal((await client.get(`${path}/export`)).person, user);
  assert.equal((await client.delete(path)).deleted, true);
  await assert.rejects(client.get(path), OpenAI.NotFoundError);
});
if (person) {
  refused("a choice between the same", () => client.post("/choices", {body: {
    user: "node", prompt: ask, chosen: "So.", rejected: "so. "}}), 400, "rejected");
  refused("a user with a control character", () => chat({user: "a\u0000b"}), 400,
    "user");
}

let failed = 0;
for (const {name, act} of cases) {
  try {
    await act();
    console.log(`as expected: ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`DIFFERENT: ${name}: ${error.message.split("\n").slice(0, 4).join(" ")}`);
  }
}
console.log(`${cases.length} cases, ${failed} different`);
process.exit(failed ? 1 : 0);
