// The page: a conversation with one model, or with two side by side. Nothing of it leaves this browser but to the models asked.

import { listModels, streamAnswer } from "./api.js";
import { renderMarkdown } from "./markdown.js";

const FLUSH_MS = 50; // text is drawn in batches: a token at a time would cost more than it shows
const REFRESH_MS = 15000;
const NEAR_END_PIXELS = 80;

const $ = (id) => document.getElementById(id);
const pickers = [$("model-first"), $("model-second")];

/** turns: [{prompt, answers: [{model, text, …} for each column]}] */
const state = { models: [], turns: [], isComparing: false, running: null };

// ——— models ———

async function refreshModels() {
  try {
    state.models = await listModels();
    showBanner(state.models.length ? "" : "No model is served yet. This page looks again by itself.");
  } catch (error) {
    showBanner("The chat service can't be reached. This page tries again by itself.");
    return;
  }
  const ids = state.models.map((m) => m.id);
  const tuned = state.models.find((m) => m.kind === "adapter");
  const base = state.models.find((m) => m.kind === "base");
  fillPicker(pickers[0], ids, (tuned || state.models[0] || {}).id);
  fillPicker(pickers[1], ids, (base || state.models[1] || state.models[0] || {}).id);
  $("compare").disabled = ids.length < 2;
  describeModel();
  updateSend();
}

function fillPicker(picker, ids, preferred) {
  const known = [...picker.options].map((o) => o.value);
  if (known.join("\n") === ids.join("\n")) return;
  const chosen = ids.includes(picker.value) ? picker.value : preferred;
  picker.replaceChildren(...ids.map((id) => new Option(id, id)));
  if (chosen) picker.value = chosen;
}

function describeModel() {
  const model = state.models.find((m) => m.id === pickers[0].value);
  $("welcome-model").textContent = model ? model.description || (model.kind === "base" ? "The base model" : "A fine-tuned model") : "";
}

const isBase = (id) => (state.models.find((m) => m.id === id) || {}).kind === "base";

function showBanner(text) {
  $("banner").textContent = text;
  $("banner").hidden = !text;
}

// ——— asking ———

const columns = () => (state.isComparing ? [0, 1] : [0]);

/** What a column's model gets to see: every prompt, with the answer that this column gave. */
function messagesOf(turns, column) {
  const messages = [];
  for (const turn of turns) {
    messages.push({ role: "user", content: turn.prompt });
    const answer = turn.answers[column] || turn.answers[0];
    if (answer && answer.text) messages.push({ role: "assistant", content: answer.text });
  }
  return messages;
}

async function ask(prompt) {
  const turn = { prompt, answers: [] };
  state.turns.push(turn);
  drawTurn(turn);
  await answerColumns(turn, columns());
}

async function answerColumns(turn, wanted) {
  const control = new AbortController();
  state.running = control;
  updateSend();
  const before = state.turns.slice(0, state.turns.indexOf(turn));
  await Promise.all(
    wanted.map((column) => {
      const model = pickers[column].value;
      const messages = [...messagesOf(before, column), { role: "user", content: turn.prompt }];
      return answer(turn, column, model, messages, control.signal);
    }),
  );
  if (state.running === control) state.running = null;
  updateSend();
}

async function answer(turn, column, model, messages, signal) {
  const reply = { model, text: "", isRunning: true, error: "", note: "" };
  turn.answers[column] = reply;
  const view = drawAnswer(turn, column);
  let timer = null;
  let firstAt = 0;
  const draw = () => {
    timer = null;
    fillAnswer(view, reply);
  };
  try {
    const { finish, usage } = await streamAnswer({
      model,
      messages,
      signal,
      onText(piece) {
        firstAt = firstAt || performance.now();
        reply.text += piece;
        timer = timer || setTimeout(draw, FLUSH_MS);
      },
    });
    reply.note = describeEnd(finish, usage, firstAt);
  } catch (error) {
    if (error.name === "AbortError") reply.note = "stopped";
    else reply.error = error instanceof TypeError ? "The chat service can't be reached." : error.message;
  }
  clearTimeout(timer);
  reply.isRunning = false;
  fillAnswer(view, reply);
}

function describeEnd(finish, usage, firstAt) {
  const parts = [];
  if (usage) {
    const seconds = (performance.now() - firstAt) / 1000;
    parts.push(`${usage.completion_tokens} token${usage.completion_tokens === 1 ? "" : "s"}`);
    if (firstAt && usage.completion_tokens > 1 && seconds > 0.01) {
      parts.push(`${Math.round((usage.completion_tokens - 1) / seconds)} per second`);
    }
  }
  if (finish === "length") parts.push("cut at the length limit");
  return parts.join(" · ");
}

// ——— drawing ———

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function drawTurn(turn) {
  $("welcome").hidden = true;
  turn.view = element("article", "turn");
  const question = element("div", "question");
  question.append(element("h2", "hidden", "You"), element("p", "", turn.prompt));
  turn.columns = element("div", "answers");
  turn.view.append(question, turn.columns);
  $("log").append(turn.view);
  scrollToEnd(true);
}

function drawAnswer(turn, column) {
  const reply = turn.answers[column];
  const view = element("section", "answer");
  view.dataset.kind = isBase(reply.model) ? "base" : "adapter";
  const name = element("h2", "name", reply.model);
  const body = element("div", "text");
  const foot = element("div", "foot");
  view.append(name, body, foot);
  view.retry = () => {
    if (!state.running) answerColumns(turn, [column]);
  };
  const old = turn.columns.children[column];
  if (old) old.replaceWith(view);
  else turn.columns.append(view);
  turn.columns.classList.toggle("pair", turn.columns.children.length > 1);
  document.body.classList.toggle("wide", !!document.querySelector(".answers.pair") || state.isComparing);
  fillAnswer(view, reply);
  return view;
}

function fillAnswer(view, reply) {
  const [, body, foot] = view.children;
  view.setAttribute("aria-busy", String(reply.isRunning));
  view.classList.toggle("running", reply.isRunning);
  body.replaceChildren(renderMarkdown(reply.text));
  if (!reply.text && !reply.isRunning && !reply.error) body.append(element("p", "empty", "(an empty answer)"));
  foot.replaceChildren();
  if (reply.error) {
    const card = element("p", "error", reply.error);
    card.setAttribute("role", "alert");
    const again = element("button", "again", "Try again");
    again.type = "button";
    again.addEventListener("click", view.retry);
    foot.append(card, again);
  } else if (reply.note) {
    foot.append(element("span", "note", reply.note));
  }
  scrollToEnd(false);
}

function isNearEnd() {
  const box = $("scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END_PIXELS;
}

let followsEnd = true;

function scrollToEnd(isForced) {
  if (isForced) followsEnd = true;
  if (followsEnd) $("scroll").scrollTop = $("scroll").scrollHeight;
  $("to-end").hidden = followsEnd || !state.turns.length;
}

// ——— controls ———

function updateSend() {
  const isRunning = !!state.running;
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  $("send").disabled = !$("prompt").value.trim() || !state.models.length;
}

function growPrompt() {
  const box = $("prompt");
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, window.innerHeight * 0.4)}px`;
  updateSend();
}

function setComparing(isOn) {
  state.isComparing = isOn;
  $("compare").setAttribute("aria-pressed", String(isOn));
  document.body.classList.toggle("comparing", isOn);
  document.body.classList.toggle("wide", isOn || !!document.querySelector(".answers.pair"));
  if (isOn && pickers[1].value === pickers[0].value) {
    const other = state.models.find((m) => m.id !== pickers[0].value);
    if (other) pickers[1].value = other.id;
  }
}

function startNewChat() {
  if (state.running) state.running.abort();
  state.turns = [];
  $("log").replaceChildren();
  $("welcome").hidden = false;
  setComparing(state.isComparing);
  scrollToEnd(true);
  $("prompt").focus();
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
}

async function copyCode(button) {
  const text = button.closest("figure").querySelector("code").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value.trim();
  if (!prompt || state.running || !state.models.length) return;
  $("prompt").value = "";
  growPrompt();
  ask(prompt);
});
$("prompt").addEventListener("input", growPrompt);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("stop").addEventListener("click", () => state.running && state.running.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running) state.running.abort();
});
$("compare").addEventListener("click", () => setComparing(!state.isComparing));
$("new-chat").addEventListener("click", startNewChat);
document.querySelector(".brand").addEventListener("click", (event) => {
  event.preventDefault();
  startNewChat();
});
$("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = isDark ? "light" : "dark";
  setTheme(theme);
  localStorage.setItem("theme", theme);
});
$("to-end").addEventListener("click", () => scrollToEnd(true));
$("scroll").addEventListener("scroll", () => {
  followsEnd = isNearEnd();
  $("to-end").hidden = followsEnd || !state.turns.length;
});
$("log").addEventListener("click", (event) => {
  if (event.target.classList.contains("copy")) copyCode(event.target);
});
pickers[0].addEventListener("change", describeModel);
document.addEventListener("visibilitychange", () => document.hidden || refreshModels());
setInterval(() => document.hidden || refreshModels(), REFRESH_MS);

setTheme(localStorage.getItem("theme"));
growPrompt();
refreshModels();
