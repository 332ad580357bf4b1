// Runs the plan, provider after provider, each in a worker of its own; posts the record.

import { addPicture, addProvider, showBrowser, showPlan, showProvider, showState } from "./view.js";

const stop = document.getElementById("stop");
const stopped = new Promise((resolve) => {
  stop.addEventListener("click", () => resolve("stopped by the user"), { once: true });
});
let sent = 0;

async function main() {
  const plan = await (await fetch("plan.json")).json();
  const browser = browserOf();
  showPlan(plan);
  showBrowser(browser);
  stop.hidden = false;
  const lock = await navigator.wakeLock?.request("screen").catch(() => null);
  const results = [];
  let files = null;
  let stopReason = null;
  for (const [index, provider] of plan.providers.entries()) {
    const base = index / plan.providers.length;
    const onEvent = ({ text, done }) => tell(text, base + done / plan.providers.length);
    const card = addProvider(provider);
    const outcome = stopReason
      ? { result: { provider, status: "not run", reason: stopReason } }
      : await measure(plan, provider, files, onEvent, card);
    files = outcome.files ?? files;
    stopReason ??= outcome.stopped ?? null;
    results.push(outcome.result);
    showProvider(card, outcome.result);
  }
  stop.hidden = true;
  await lock?.release();
  await post({ ...browser, format: 1, providers: results });
}

/** One provider in a worker: what it measured, or why it could not. */
async function measure(plan, provider, files, onEvent, card) {
  const reason = await missing(provider);
  if (reason) return { result: { provider, status: "not run", reason } };
  const worker = new Worker("worker.js", { type: "module" });
  const state = { files: null, result: { provider, status: "failed", reason: null } };
  const ended = new Promise((resolve) => {
    const fail = (text) => {
      state.result = { ...state.result, status: "failed", reason: text.slice(0, 900) };
      resolve(state);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      fail(event.message || "the worker ended: most likely out of memory");
    };
    worker.onmessageerror = () => fail("the worker's message cannot be read");
    const timer = setTimeout(
      () => fail(`no end in ${Math.round(plan.deadline_s * 0.95)} s`), 950 * plan.deadline_s);
    stopped.then((text) => {
      state.stopped = text;
      fail(text);
    });
    worker.onmessage = ({ data }) => {
      if (data.kind === "event") onEvent(data);
      if (data.kind === "files") state.files = data.files;
      if (data.kind === "picture") addPicture(card, data);
      if (data.kind === "result") {
        state.result = data.result;
        showProvider(card, data.result);
      }
      if (data.kind === "end") {
        clearTimeout(timer);
        resolve(state);
      }
    };
  });
  worker.postMessage({ plan, provider, files });
  await ended;
  worker.terminate();
  if (state.result.memory) state.result.memory.heap = performance.memory?.usedJSHeapSize ?? null;
  return state;
}

/** Why a provider is not here. */
async function missing(provider) {
  if (provider !== "webgpu") return null;
  if (!window.isSecureContext) return "WebGPU needs a secure context: https, or localhost";
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? null : "WebGPU has no adapter here";
}

function browserOf() {
  const agent = navigator.userAgentData;
  return {
    user_agent: navigator.userAgent.slice(0, 900),
    platform: agent?.platform ?? navigator.platform ?? null,
    mobile: agent?.mobile ?? null,
    cores: navigator.hardwareConcurrency ?? null,
    device_memory: navigator.deviceMemory ?? null,
    secure_context: window.isSecureContext,
    isolated: window.crossOriginIsolated === true,
  };
}

/** Shows what happens; the server is told at most twice a second. */
function tell(text, done) {
  showState("Measuring", text, done);
  const now = performance.now();
  if (now - sent < 500) return;
  sent = now;
  fetch("event", request({ text: text.slice(0, 290), done: Math.min(1, done) })).catch(() => {});
}

async function post(record) {
  showState("Sending the record", "", 1);
  try {
    const answer = await fetch("record", request(record));
    if (!answer.ok) throw new Error(`the server refused it (${answer.status})`);
    showState("Done", "The record is with the computer; this page may be closed.", 1);
  } catch (error) {
    showState("The record was not taken", String(error.message ?? error), 1);
  }
}

function request(value) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

main().catch((error) => showState("The page failed", String(error.message ?? error), 1));
