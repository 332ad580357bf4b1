// "Check on first start" of runtime/README.md: parts and loops against the goldens.

import { MtuError, underRule } from "./errors.js";
import { isSet, promptedCalls } from "./flow_rules.js";
import { advance, ask, startOf, trajectory } from "./loop.js";
import { prepare } from "./request.js";
import { inputsOf } from "./rules.js";
import { psnr } from "./tensors.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Task} Task
 * @typedef {import("./types.js").Part} Part
 * @typedef {import("./types.js").Run} Run
 * @typedef {import("./types.js").Request} Request
 * @typedef {import("./types.js").Schedule} Schedule
 * @typedef {import("./types.js").Tensor} Tensor
 * @typedef {import("./types.js").Tensors} Tensors
 * @typedef {import("./types.js").Verdict} Verdict
 * @typedef {import("./loop.js").State} State
 * @typedef {import("./flow.js").Evaluation} Evaluation
 * @typedef {import("./flow.js").Fitted} Fitted
 * @typedef {import("./safetensors.js").Safetensors} Safetensors
 */

const CASES = 3;
const PIPELINE = "pipeline";

/**
 * Task -> the first task with the same entry: that one has goldens and verdicts.
 * @param {Part} part
 */
export function provenTasks(part) {
  const entries = Object.entries(part.entries);
  /** @type {Map<string, string>} */
  const firsts = new Map();
  for (const [task, entry] of entries) {
    const first = entries.find(([, other]) => other === entry);
    firsts.set(task, first ? first[0] : task);
  }
  return firsts;
}

/**
 * A part on its goldens: the worst case and output.
 * @param {Manifest} manifest
 * @param {Part} part
 * @param {string} task
 * @param {Safetensors} goldens
 * @param {Run} run
 * @returns {Promise<Verdict>}
 */
export async function provePart(manifest, part, task, goldens, run) {
  const { stage, floor_db } = entryOf(manifest, part.name, task, ["quantised", "exported"]);
  /** @type {Record<string, number>} */
  const outputs = Object.create(null);
  for (let number = 0; number < CASES; number += 1) {
    const prefix = `${part.name}/${task}/${number}/`;
    /** @type {(name: string) => Promise<Tensor>} */
    const golden = (name) => underRule(10, () => goldens.tensor(prefix + name));
    /** @type {Tensors} */
    const feeds = Object.create(null);
    for (const { name } of inputsOf(part, task)) feeds[name] = await golden(name);
    const results = await run(feeds);
    for (const { name } of part.outputs) {
      outputs[name] = Math.min(outputs[name] ?? Infinity, psnr(await golden(name), results[name]));
    }
  }
  const psnr_db = Math.min(...Object.values(outputs));
  return { part: part.name, task, stage, psnr_db, floor_db, passed: psnr_db >= floor_db, outputs };
}

/**
 * Each pass on its own and the picture of the last latent, then the loop running free as a figure;
 * nothing where the bundle has no golden of this loop.
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Safetensors} goldens
 * @param {(fitted: Fitted) => Evaluation} begin
 * @returns {Promise<Verdict[]>}
 */
export async function proveLoop(manifest, task, goldens, begin) {
  const request = await goldenRequest(manifest, task, goldens);
  if (!request) return [];
  const { floor_db } = entryOf(manifest, PIPELINE, task.name, ["passes"]);
  const { fitted, table, noise } = await underRule(undefined, () => prepare(manifest, task, request));
  const evaluation = begin(fitted);
  await evaluation.runOnce();
  const picture = await tensorOf(goldens, task, "picture");
  /** @type {Record<string, number>} */
  const outputs = Object.create(null);
  /** @type {Tensor | undefined} */
  let last;
  /** @type {Tensor | undefined} */
  let free;
  if (table && noise) {
    const latents = await provePasses(evaluation, table, noise, goldens, outputs);
    last = latents[latents.length - 1];
    const passes = trajectory((x, pass) => evaluation.denoise(x, pass), table, noise, evaluation.start());
    for await (free of passes);
  }
  outputs.picture = psnr(picture, await evaluation.picture(last));
  const labels = { part: PIPELINE, task: task.name };
  const psnr_db = Math.min(...Object.values(outputs));
  /** @type {Verdict} */
  const verdict = { ...labels, stage: "passes", psnr_db, floor_db, passed: psnr_db >= floor_db, outputs };
  if (!last || !free) return [verdict];
  const figures = { x: psnr(last, free), picture: psnr(picture, await evaluation.picture(free)) };
  const worst = Math.min(...Object.values(figures));
  return [verdict, { ...labels, stage: "loop", psnr_db: worst, floor_db: 0, passed: null, outputs: figures }];
}

/**
 * The request of the goldens of a task's loop; null where there is none.
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Safetensors} goldens
 * @returns {Promise<Request | null>}
 */
export async function goldenRequest(manifest, task, goldens) {
  const { golden } = manifest;
  if (!golden || !goldens.entries.has(`loop/${task.name}/picture`)) return null;
  const takesPrompt = promptedCalls(task).size > 0;
  const guided = takesPrompt && task.guidance.kind !== "none";
  /** @type {Record<string, Tensor>} */
  const pictures = Object.create(null);
  for (const name of Object.keys(task.inputs.pictures ?? {})) {
    pictures[name] = await tensorOf(goldens, task, `request/${name}`);
  }
  /** @type {Record<string, Tensor>} */
  const tensors = Object.create(null);
  for (const name of Object.keys(task.inputs.tensors ?? {})) {
    tensors[name] = await tensorOf(goldens, task, `request/${name}`);
  }
  return {
    prompt: takesPrompt ? golden.prompt : null,
    negativePrompt: guided ? golden.negative_prompt : null,
    pictures,
    tensors,
    ...(isSet(task.flow.prediction)
      ? {
        steps: golden.steps ?? undefined,
        strength: isSet(task.flow.start) ? golden.strength : null,
        noise: await tensorOf(goldens, task, "noise"),
      } : {}),
  };
}

/**
 * x after each pass, each from the reference's states.
 * @param {Evaluation} evaluation
 * @param {Schedule} table
 * @param {Tensor} noise
 * @param {Safetensors} goldens
 * @param {Record<string, number>} outputs Gets the dB of each pass.
 */
async function provePasses(evaluation, table, noise, goldens, outputs) {
  const { task } = evaluation;
  let x = startOf(table, noise, evaluation.start());
  /** @type {State[]} */
  let states = [];
  /** @type {Tensor[]} */
  const latents = [];
  for (let index = 0; index < table.passes.length; index += 1) {
    const m = await ask((latent, pass) => evaluation.denoise(latent, pass), table, index, x);
    const after = advance(table, index, [{ x, m }, ...states], noise);
    const reference = await tensorOf(goldens, task, `outputs/${index}`);
    states = [{ x, m: reference }, ...states];
    x = await tensorOf(goldens, task, `latents/${index}`);
    outputs[`latents/${index}`] = psnr(x, after);
    latents.push(x);
  }
  return latents;
}

/**
 * @param {Safetensors} goldens
 * @param {Task} task
 * @param {string} name
 */
function tensorOf(goldens, task, name) {
  return underRule(10, () => goldens.tensor(`loop/${task.name}/${name}`));
}

/**
 * @param {Manifest} manifest
 * @param {string} part
 * @param {string} task
 * @param {string[]} stages
 */
function entryOf(manifest, part, task, stages) {
  const entry = manifest.proof.find(
    (each) => each.part === part && each.task === task && stages.includes(each.stage));
  if (!entry) throw new MtuError("refused", `proof has no entry of ${part} for task ${task}`);
  return entry;
}
