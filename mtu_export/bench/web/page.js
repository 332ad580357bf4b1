// Runs the plan, provider after provider, each in a worker of its own; posts the record.

import { forget, interrupted, keep } from "./resume.js";
import { addPicture, addProvider, showBrowser, showPlan, showProvider, showState } from "./view.js";

const stop = document.getElementById("stop");
const stopped = new Promise((resolve) => {
  stop.addEventListener("click", () => resolve("stopped by the user"), { once: true });
});
const storage = sessionStorageOf();
let sent = 0;

async function main() {
  const plan = await (await fetch("plan.json")).json();
  const browser = await browserOf();
  showPlan(plan);
  showBrowser(browser);
  stop.hidden = false;
  const lock = await navigator.wakeLock?.request("screen").catch(() => null);
  const results = interrupted(storage);
  for (const result of results) showProvider(addProvider(result.provider), result);
  const shared = { files: null, stopped: null };
  for (const [index, provider] of plan.providers.entries()) {
    if (index < results.length) continue;
    const card = addProvider(provider);
    let running = { provider };
    const onEvent = ({ text, done }) => {
      keep(storage, results, running, text);
      tell(text, (index + done) / plan.providers.length);
    };
    const onResult = (result) => {
      running = result;
      showProvider(card, result);
    };
    const result = await measure(plan, provider, shared, { onEvent, onResult, card });
    results.push(result);
    keep(storage, results, null, "");
    showProvider(card, result);
  }
  stop.hidden = true;
  await lock?.release();
  await post({ ...browser, format: 1, providers: results }, shared.stopped ? "Stopped" : "Done");
}

/** One provider: what it measured in all rounds, or why it could not. */
async function measure(plan, provider, shared, { onEvent, onResult, card }) {
  const reason = shared.stopped ?? await missing(provider);
  if (reason) return { provider, status: "not run", reason };
  const end = performance.now() + 950 * plan.deadline_s;
  let whole = null;
  for (let round = 0; round < plan.rounds; round += 1) {
    const onShare = ({ text, done }) => onEvent({ text, done: (round + done) / plan.rounds });
    const onPart = (result) => onResult(merged(whole, result));
    const result = await inWorker({ plan, provider, round, end, shared, onShare, onResult: onPart, card });
    whole = merged(whole, result);
    if (result.status !== "measured") break;
  }
  if (whole.memory) whole.memory.heap = performance.memory?.usedJSHeapSize ?? null;
  return whole;
}

/** The first round, which has pictures and checks, with the parts' rounds of all. */
function merged(whole, result) {
  if (!whole) return result;
  const parts = Object.fromEntries(Object.entries(whole.parts).map(([name, part]) => {
    const { status, reason, rounds } = result.parts?.[name] ?? { ...part, rounds: [] };
    return [name, { status, reason, rounds: [...part.rounds, ...rounds] }];
  }));
  const image = mergedImage(whole.image, result.image);
  return { ...whole, status: result.status, reason: result.reason, parts, image };
}

function mergedImage(whole, image) {
  if (!whole || !image) return whole;
  const calls = Object.fromEntries(Object.entries(whole.calls).map(([name, { count, seconds }]) => {
    const more = image.calls[name] ?? { count: 0, seconds: [] };
    return [name, { count: count + more.count, seconds: [...seconds, ...more.seconds] }];
  }));
  return { ...whole, rounds: [...whole.rounds, ...image.rounds], calls };
}

/** One round in a worker. */
async function inWorker({ plan, provider, round, end, shared, onShare, onResult, card }) {
  const worker = new Worker("worker.js", { type: "module" });
  let result = { provider, status: "failed", reason: null };
  await new Promise((resolve) => {
    const fail = (text) => {
      result = { ...result, status: "failed", reason: text.slice(0, 900) };
      resolve();
    };
    worker.onerror = (event) => {
      event.preventDefault();
      fail(event.message || "the worker ended: most likely out of memory");
    };
    worker.onmessageerror = () => fail("the worker's message cannot be read");
    setTimeout(() => fail(`no end in ${Math.round(plan.deadline_s)} s`), end - performance.now());
    stopped.then((text) => {
      shared.stopped = text;
      fail(text);
    });
    worker.onmessage = ({ data }) => {
      if (data.kind === "event") onShare(data);
      if (data.kind === "files") shared.files = data.files;
      if (data.kind === "picture") addPicture(card, data);
      if (data.kind === "result") {
        result = data.result;
        onResult(result);
      }
      if (data.kind === "end") resolve();
    };
    worker.postMessage({ plan, provider, round, files: shared.files });
  });
  worker.terminate();
  return result;
}

/** The tab's storage; null where the browser forbids it. */
function sessionStorageOf() {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

/** Why a provider is not here. */
async function missing(provider) {
  if (provider !== "webgpu") return null;
  if (!window.isSecureContext) return "WebGPU needs a secure context: https, or localhost";
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? null : "WebGPU has no adapter here";
}

async function browserOf() {
  const agent = navigator.userAgentData;
  const hints = ["architecture", "model", "platformVersion"];
  const told = await agent?.getHighEntropyValues?.(hints).catch(() => null);
  return {
    user_agent: navigator.userAgent.slice(0, 900),
    platform: agent?.platform ?? navigator.platform ?? null,
    platform_version: told?.platformVersion || null,
    model: told?.model || null,
    architecture: told?.architecture || null,
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

async function post(record, state) {
  showState("Sending the record", "", 1);
  try {
    const answer = await fetch("record", request(record));
    forget(storage);
    if (!answer.ok) throw new Error(`the server refused it (${answer.status})`);
    showState(state, "The record is with the computer; this page may be closed.", 1);
  } catch (error) {
    showState("The record was not taken", String(error.message ?? error), 1);
  }
}

function request(value) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) };
}

main().catch((error) => showState("The page failed", String(error.message ?? error), 1));
