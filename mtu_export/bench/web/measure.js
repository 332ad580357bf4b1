// The measurement of one provider: parts, the whole picture, and then the goldens.

import { goldenRequest, openBundle, Pipeline } from "./mtu/mtu.js";
import { provenTasks, provePart } from "./mtu/proof.js";
import { inputsOf } from "./mtu/rules.js";
import { openPart } from "./mtu/runtime.js";

const EQUAL_DB = 999;
const MOST_THREADS = 4;
/** Bytes of parts that stay loaded while pictures are made; of more, each is loaded when needed. */
const KEPT = 2.5e8;

/** The memories of WebAssembly, which grow and never shrink. */
const memories = [];
const Memory = WebAssembly.Memory;
WebAssembly.Memory = class extends Memory {
  constructor(description) {
    super(description);
    memories.push(this);
  }
};

/** One round. Fills `result`; what is there stays when something throws. */
export async function measureProvider(plan, round, result, files, post) {
  const { provider } = result;
  const isFirst = round === 0;
  const steps = stepsOf(plan, isFirst);
  const label = plan.rounds > 1 ? `${provider}, round ${round + 1} of ${plan.rounds}` : provider;
  const tell = (text) => post("event", { text: `${label}: ${text}`, done: steps.next() });
  const show = () => post("result", { result: { ...result, status: "running" } });
  tell("loading ONNX Runtime Web");
  const ort = await openEngine(plan, provider, result);
  tell(files ? "checking the bundle" : "fetching and checking the bundle");
  let start = performance.now();
  const bundle = await openBundle(sourceOf(plan, files), { tasks: [plan.task], goldens: true });
  result.open_s = since(start);
  if (!files) post("files", { files: [...bundle.files.blobs] });
  const options = { executionProviders: [provider] };
  for (const name of Object.keys(plan.parts)) {
    await measurePart(ort, bundle, { ...plan, check: plan.check && isFirst }, name, options, result, tell);
    show();
  }
  if (plan.image) {
    const keep = plan.bytes <= KEPT;
    const pipeline = await Pipeline.open(bundle, ort, { ...options, task: plan.task, keep });
    await makePicture(pipeline, bundle, keep ? 2 : 1, result, tell, post);
    show();
    if (plan.check && isFirst) await checkLoop(pipeline, result, tell);
    await pipeline.close();
  }
  result.memory = { wasm: memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0), heap: null };
}

/** The bundle of the server; what an earlier worker has fetched is taken from there. */
function sourceOf(plan, files) {
  const base = new URL("bundle/", import.meta.url);
  const kept = new Map(files ?? []);
  const get = async (url, options) => {
    const blob = kept.get(decodeURIComponent(url.href.slice(base.href.length)));
    return blob ? new Response(blob) : fetch(url, options);
  };
  return { base, paths: plan.paths, fetch: get };
}

async function openEngine(plan, provider, result) {
  const ort = await import(`./ort/ort.${provider}.bundle.min.mjs`);
  const isolated = self.crossOriginIsolated === true;
  const cores = navigator.hardwareConcurrency || 1;
  ort.env.wasm.numThreads = isolated ? plan.threads || Math.min(cores, MOST_THREADS) : 1;
  ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
  ort.env.logLevel = "error";
  result.threads = ort.env.wasm.numThreads;
  result.engine = { name: "onnxruntime-web", version: ort.env.versions?.web ?? ort.env.versions?.common ?? "unknown" };
  if (provider === "webgpu") {
    const adapter = await navigator.gpu?.requestAdapter();
    const info = adapter?.info;
    const words = [info?.vendor, info?.architecture, info?.device, info?.description].filter(Boolean);
    result.adapter = words.join(" ").slice(0, 300) || "not told";
  }
  return ort;
}

async function measurePart(ort, bundle, plan, name, options, result, tell) {
  const part = bundle.manifest.parts.find((each) => each.name === name);
  const measured = { samples_s: [] };
  const entry = { status: "measured", reason: null, rounds: [measured] };
  result.parts[name] = entry;
  try {
    const feeds = await feedsOf(bundle, part, plan.task);
    for (const key of ["load_s", "load_again_s"]) {
      tell(`${name}: ${key === "load_s" ? "loading" : "loading again"}`);
      const start = performance.now();
      const session = await openPart(ort, bundle, part, plan.task, options);
      measured[key] = since(start);
      if (key === "load_again_s") {
        await sample(session, feeds, [plan.warmup, plan.parts[name]], measured, (text) => tell(`${name}: ${text}`));
        if (plan.check) await checkPart(bundle, part, plan.task, session, result, tell);
      }
      await session.close();
    }
  } catch (error) {
    entry.status = "failed";
    entry.reason = String(error?.message ?? error).slice(0, 900);
    throw error;
  }
}

async function sample(session, feeds, [warmup, samples], measured, tell) {
  for (let number = 0; number < Math.max(1, warmup) + samples; number += 1) {
    const sampled = number - Math.max(1, warmup);
    tell(number === 0 ? "first run" : sampled < 0 ? "warming up" : `sample ${sampled + 1} of ${samples}`);
    const start = performance.now();
    await session.run(feeds);
    const seconds = since(start);
    if (number === 0) measured.first_s = seconds;
    if (sampled >= 0) measured.samples_s.push(seconds);
  }
}

/** The inputs of the first golden case; zeros where the bundle has none. */
async function feedsOf(bundle, part, task) {
  const goldens = await bundle.goldens();
  const proven = provenTasks(part).get(task) ?? task;
  const feeds = Object.create(null);
  for (const { name, shape, dtype } of inputsOf(part, task)) {
    const key = `${part.name}/${proven}/0/${name}`;
    const count = shape.reduce((product, extent) => product * extent, 1);
    const zeros = dtype === "int32" ? new Int32Array(count) : new Float32Array(count);
    feeds[name] = goldens?.entries.has(key) ? await goldens.tensor(key) : { shape, data: zeros };
  }
  return feeds;
}

/** The picture of the goldens; a second time where parts stay loaded, without the first runs. */
async function makePicture(pipeline, bundle, times, result, tell, post) {
  const goldens = await bundle.goldens();
  const { task, manifest } = pipeline;
  const request = (goldens && await goldenRequest(manifest, task, goldens)) ?? plainRequest(pipeline);
  const steps = request.steps ?? (task.flow.prediction ? task.steps : null);
  const round = { load_s: 0, first_s: null, seconds: null };
  const image = { steps, passes: 0, rounds: [round], calls: Object.create(null) };
  let loading = 0;
  const onEvent = ({ kind, part, seconds, number, of }) => {
    if (kind === "loaded") loading += seconds;
    if (kind === "called") {
      image.calls[part] ??= { count: 0, seconds: [] };
      image.calls[part].count += 1;
      image.calls[part].seconds.push(seconds);
    }
    if (kind === "pass") {
      image.passes = of;
      tell(`picture: pass ${number} of ${of}`);
    }
  };
  for (let time = 0; time < times; time += 1) {
    tell(time ? "picture, again" : "picture");
    [image.calls, loading] = [Object.create(null), 0];
    const start = performance.now();
    const { pixels } = await pipeline.generate(request, { onEvent });
    round[time ? "seconds" : "first_s"] = Math.max(0, since(start) - loading);
    round.load_s += loading;
    post("picture", { pixels, image });
  }
  result.image = image;
}

/** For a bundle without goldens of its loop: grey pictures and zeros. */
function plainRequest({ task, manifest, tokenizers }) {
  const { pictures = {}, tensors = {} } = task.inputs;
  const grey = { width: 2, height: 2, data: new Uint8Array(16).fill(128) };
  const zeros = ({ shape }) => ({ shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) });
  return {
    prompt: tokenizers.size ? manifest.golden?.prompt ?? "a picture" : null,
    pictures: Object.fromEntries(Object.keys(pictures).map((name) => [name, grey])),
    tensors: Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, zeros(tensor)])),
  };
}

async function checkPart(bundle, part, task, session, result, tell) {
  const goldens = await bundle.goldens();
  if (!goldens) return;
  tell(`${part.name}: comparing with the goldens`);
  const proven = provenTasks(part).get(task) ?? task;
  addCheck(result, await provePart(bundle.manifest, part, proven, goldens, (feeds) => session.run(feeds)));
}

async function checkLoop(pipeline, result, tell) {
  tell("comparing the loop with the goldens");
  for (const verdict of await pipeline.verify({ parts: false })) addCheck(result, verdict);
}

function addCheck(result, { part, stage, psnr_db, floor_db, passed, outputs }) {
  if (!(psnr_db > -Infinity)) throw new Error(`${part}: its outputs hold NaN or Inf`);
  const plain = Object.entries(outputs).map(([name, db]) => [name, Math.min(db, EQUAL_DB)]);
  result.checks.push({
    part, stage, psnr_db: Math.min(psnr_db, EQUAL_DB), floor_db, passed, outputs: Object.fromEntries(plain),
  });
}

/** The share of this round that is done, from a rough count of all steps. */
function stepsOf(plan, isFirst) {
  const samples = Object.values(plan.parts);
  const parts = samples.reduce((sum, count) => sum + 2 + Math.max(1, plan.warmup) + count, 0);
  const total = 2 + parts + (isFirst && plan.check ? samples.length : 0) + (plan.image ? 24 : 0);
  let step = 0;
  return { next: () => Math.min(1, (step += 1) / total) };
}

function since(start) {
  return (performance.now() - start) / 1000;
}
