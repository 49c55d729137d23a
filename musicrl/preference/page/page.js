// The page: ask for music, listen, give a trophy or a mark, go on. What may be answered when is the
// server's to decide; here it is only shown. Text from outside enters by textContent alone.

import { Player } from "/player.js";

const find = (id) => document.getElementById(id);
const TRIES = 4;
const NAMES = { compare: ["a", "b"], rating: ["a"] };

let rules = null;
let offer = null;
let players = {};
let heard = {};
let choice = "none";
let isBusy = false;

const number = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// A request that was lost is sent again: the server counts it once.
async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  for (let attempt = 1; ; attempt += 1) {
    const answer = await fetch(path, options).catch(() => null);
    if (answer?.ok) return answer;
    const isLost = !answer || answer.status >= 500 || answer.status === 429;
    if (isLost && attempt < TRIES) {
      await pause(Number(answer?.headers.get("Retry-After")) || attempt);
      continue;
    }
    const fault = answer && await answer.json().catch(() => null);
    throw new Error(fault?.error ?? "The server cannot be reached. Your last answer may not be kept.");
  }
}

const askJson = async (path, body) => (await ask(path, body)).json();

async function start() {
  rules = await askJson("/api/session");
  const isRating = rules.mode === "rating";
  find("title").textContent = isRating ? "How good is it?" : "Which do you prefer?";
  document.title = find("title").textContent;
  find("typing").hidden = !rules.takes_text;
  find("pick").textContent = rules.takes_text ? "Or pick one of these" : "Pick one of these";
  find("asked-for").textContent = isRating ? "A clip of" : "Two clips of";
  showCount(rules.answered);
  showKeys(isRating);
  if (isRating) await request(null);
  else showAsk();
}

function showAsk() {
  reveal("ask");
  find("suggestions").replaceChildren(...rules.suggestions.map((text) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = text;
    chip.addEventListener("click", () => run(() => request(text)));
    return chip;
  }));
  say("");
}

async function request(text) {
  say(rules.takes_text ? "Making music, this takes some seconds" : "Fetching the music", true);
  const found = await askJson("/api/offers", { request: number(), prompt: text });
  if (found.finished && text) return say(`That was all of it: ${found.finished}.`);
  if (found.finished) {
    find("end-text").textContent = `Thank you: ${found.finished}.`;
    say("");
    return reveal("end");
  }
  const clips = await Promise.all(Object.values(found.clips).map(async (clip) => (await ask(clip.url)).arrayBuffer()));
  clear();
  offer = found;
  find("asked").textContent = offer.prompt;
  reveal("listen");
  const sides = NAMES[rules.mode];
  await Promise.all(sides.map((side, i) => addCard(side).load(clips[i], offer.clips[side].seconds)));
  say(sides.length > 1 ? "Two clips are ready." : "A clip is ready.");
  showState();
  find("cards").querySelector(".play").focus();
}

function addCard(side) {
  const isPair = rules.mode === "compare";
  const name = isPair ? `clip ${side.toUpperCase()}` : "the clip";
  const card = find("card").content.firstElementChild.cloneNode(true);
  card.dataset.side = side;
  card.querySelector("h3").textContent = isPair ? `Clip ${side.toUpperCase()}` : "Listen";
  card.querySelector("h3").hidden = !isPair;
  const trophy = card.querySelector(".trophy");
  trophy.hidden = !isPair;
  trophy.addEventListener("click", () => award(side));
  find("cards").append(card);
  const served = offer;
  players[side] = new Player(card, name, {
    report: (started, ended) => tell(served, { token: served.token, event: number(), side, started, ended }),
    onPlay: (playing) => Object.values(players).forEach((other) => other !== playing && other.pause()),
  });
  heard[side] = 0;
  return players[side];
}

async function tell(served, stretch) {
  try {
    const answer = await askJson("/api/plays", stretch);
    if (offer !== served) return;
    const couldJudge = canJudge();
    for (const side of Object.keys(heard)) heard[side] = Math.max(heard[side], answer.heard[side]);
    showState();
    if (!couldJudge && canJudge()) say(rules.mode === "compare" ? "You may give a trophy now." : "You may rate the clip now.");
  } catch (fault) {
    showFault(fault);
  }
}

const canJudge = () => Object.values(heard).every((share) => share >= rules.minimum_share);

function award(side) {
  if (!offer || !canJudge() || rules.mode !== "compare") return;
  choice = choice === side ? "none" : side;
  say(choice === "none" ? "No trophy." : `The trophy goes to clip ${side.toUpperCase()}.`);
  showState();
}

function showState() {
  const isRating = rules.mode === "rating";
  for (const card of find("cards").children) {
    const side = card.dataset.side;
    const isEnough = heard[side] >= rules.minimum_share;
    const label = card.querySelector(".heard");
    label.textContent = isEnough ? "✓ heard" : `${Math.round(100 * heard[side])} % of ${Math.round(100 * rules.minimum_share)} % heard`;
    label.classList.toggle("enough", isEnough);
    const trophy = card.querySelector(".trophy");
    const isWinner = choice === side;
    trophy.disabled = !canJudge();
    trophy.setAttribute("aria-pressed", String(isWinner));
    trophy.querySelector("span").textContent = isWinner ? "Trophy given" : "Give the trophy";
    trophy.setAttribute("aria-label", `Give the trophy to clip ${side.toUpperCase()}`);
    card.classList.toggle("winner", isWinner);
  }
  find("marks").hidden = !isRating;
  for (const mark of marks()) mark.disabled = !canJudge();
  find("next").disabled = isRating && !score();
  find("hint").textContent = hint(isRating);
}

function hint(isRating) {
  if (isRating) return canJudge() ? "" : "Listen first, then give a mark.";
  if (!canJudge()) return "Listen to both, then give a trophy to the one you prefer.";
  return choice === "none" ? "A trophy is optional: you may go on without one." : "";
}

const marks = () => [...document.querySelectorAll('input[name="score"]')];
const score = () => Number(marks().find((mark) => mark.checked)?.value ?? 0);

async function next() {
  if (find("next").disabled || !offer) return;
  Object.values(players).forEach((player) => player.pause());
  const { token } = offer;
  const isRating = rules.mode === "rating";
  const kept = isRating
    ? await askJson("/api/ratings", { token, score: score() })
    : await askJson("/api/choices", { token, choice });
  clear();
  showCount(kept.answered);
  if (isRating) return request(null);
  rules = await askJson("/api/session");
  showAsk();
  find("main").focus();
}

function clear() {
  Object.values(players).forEach((player) => player.remove());
  [players, heard, offer, choice] = [{}, {}, null, "none"];
  find("cards").replaceChildren();
  for (const mark of marks()) mark.checked = false;
}

// One thing at a time: what is pressed twice happens once.
async function run(task) {
  if (isBusy) return;
  isBusy = true;
  document.body.setAttribute("aria-busy", "true");
  find("fault").hidden = true;
  try {
    await task();
  } catch (fault) {
    showFault(fault);
  } finally {
    isBusy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function reveal(id) {
  for (const part of ["ask", "listen", "end"]) find(part).hidden = part !== id;
}

function say(text, isWorking = false) {
  find("status").textContent = text;
  find("status").classList.toggle("working", isWorking);
}

function showFault(fault) {
  say("");
  find("fault").textContent = fault.message;
  find("fault").hidden = false;
}

function showCount(count) {
  find("count").textContent = count ? `${count} ${count === 1 ? "answer" : "answers"}, thank you` : "";
}

function showKeys(isRating) {
  const rows = isRating
    ? [["A", "play or pause"], ["1 to 5", "give a mark"], ["N", "next"]]
    : [["A  B", "play or pause a clip"], ["1  2", "give the trophy to A or B, or take it back"], ["N", "next"]];
  find("keys").replaceChildren(...rows.flatMap(([key, meaning]) => {
    const [term, text, box] = ["dt", "dd", "kbd"].map((tag) => document.createElement(tag));
    box.textContent = key;
    term.append(box);
    text.textContent = meaning;
    return [term, text];
  }));
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.type === "text") return;
  const key = event.key.toLowerCase();
  if (players[key]) players[key].toggle();
  else if (offer && rules.mode === "compare" && "12".includes(key)) award(key === "1" ? "a" : "b");
  else if (offer && rules.mode === "rating" && "12345".includes(key)) mark(Number(key));
  else if (key === "n" && offer) run(next);
  else if (key === "n" && rules && !find("ask").hidden) run(() => request(null));
}

function mark(value) {
  if (!canJudge()) return;
  marks()[value - 1].checked = true;
  showState();
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("prompt").value.trim();
  if (text) run(() => request(text));
  else find("prompt").focus();
});
find("surprise").addEventListener("click", () => run(() => request(null)));
find("next").addEventListener("click", () => run(next));
find("marks").addEventListener("change", showState);
document.addEventListener("keydown", press);
run(start);
