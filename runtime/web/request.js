// A request, checked and made ready for the flow.

import { MtuError, requireRequest, shown } from "./errors.js";
import { isSet, promptedCalls } from "./flow_rules.js";
import { draws } from "./loop.js";
import { standardNormal } from "./noise.js";
import { fitPicture } from "./pictures.js";
import { schedulesOf } from "./rules.js";
import { countOf, isFinite } from "./tensors.js";
import { latentShape, pictureShape, sameShape } from "./wiring.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Task} Task
 * @typedef {import("./types.js").Request} Request
 * @typedef {import("./types.js").Schedule} Schedule
 * @typedef {import("./types.js").Tensor} Tensor
 * @typedef {import("./types.js").RawPicture} RawPicture
 * @typedef {import("./flow.js").Fitted} Fitted
 */

/**
 * The request with its pictures fitted, its table and its noise; those are null without a loop.
 * Throws MtuError `request`.
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Request} request
 * @returns {{ fitted: Fitted, table: Schedule | null, noise: Tensor | null }}
 */
export function prepare(manifest, task, request) {
  const { pictures = {}, tensors = {}, numbers = {} } = task.inputs;
  requireNames(request.pictures, Object.keys(pictures), "picture", true);
  requireNames(request.tensors, Object.keys(tensors), "tensor", true);
  requireNames(request.numbers, Object.keys(numbers), "number", false);
  for (const [name, number] of Object.entries(request.numbers ?? {})) {
    const { minimum, maximum } = numbers[name];
    requireRequest(number >= minimum && number <= maximum, `${name} must be ${minimum} to ${maximum}`);
  }
  for (const [name, tensor] of Object.entries(request.tensors ?? {})) {
    requireTensor(tensor, tensors[name].shape, name);
  }
  const { prompt, negativePrompt } = texts(task, request);
  /** @type {Record<string, Tensor>} */
  const fittedPictures = Object.create(null);
  for (const [name, picture] of Object.entries(request.pictures ?? {})) {
    fittedPictures[name] = fitted(manifest, pictures[name], picture, name);
  }
  const guidance = { ...task.guidance, ...scales(task, request) };
  const values = { tensors: plain(request.tensors), numbers: plain(request.numbers) };
  const table = isSet(task.flow.prediction) ? tableOf(manifest, task, request) : null;
  return {
    fitted: { prompt, negativePrompt, pictures: fittedPictures, ...values, guidance },
    table,
    noise: table ? noiseOf(manifest, table, request) : null,
  };
}

/**
 * A copy without a prototype: `constructor` is a legal name.
 * @template T
 * @param {Record<string, T> | undefined} values
 * @returns {Record<string, T>}
 */
function plain(values) {
  return Object.assign(Object.create(null), values);
}

/**
 * @param {Task} task
 * @param {Request} request
 */
function texts(task, request) {
  const takesPrompt = promptedCalls(task).size > 0;
  const prompt = request.prompt ?? null;
  requireRequest(takesPrompt === (prompt !== null), `task ${task.name} ${takesPrompt ? "needs a" : "takes no"} prompt`);
  const negativePrompt = request.negativePrompt ?? null;
  const takesNegative = takesPrompt && task.guidance.kind !== "none";
  requireRequest(takesNegative || negativePrompt === null, `task ${task.name} takes no negative prompt`);
  return { prompt, negativePrompt };
}

/**
 * @param {Task} task
 * @param {Request} request
 */
function scales(task, request) {
  /** @type {{ text?: number, image?: number }} */
  const chosen = {};
  for (const key of /** @type {("text" | "image")[]} */ (["text", "image"])) {
    const scale = request.guidance?.[key];
    if (scale === undefined) continue;
    const taken = key in task.guidance;
    requireRequest(taken && Math.abs(scale) <= 10_000, `guidance.${key}: ${scale}`);
    chosen[key] = scale;
  }
  return chosen;
}

/**
 * @param {Record<string, unknown> | undefined} values
 * @param {string[]} names
 * @param {string} what
 * @param {boolean} all
 */
function requireNames(values = {}, names, what, all) {
  for (const name of Object.keys(values)) requireRequest(names.includes(name), `the task takes no ${what} ${shown(name)}`);
  for (const name of all ? names : []) {
    requireRequest(Object.hasOwn(values, name) && values[name], `the task needs a ${what} ${shown(name)}`);
  }
}

/**
 * @param {Manifest} manifest
 * @param {import("./types.js").PictureInput} input
 * @param {RawPicture | Tensor} picture
 * @param {string} name
 */
function fitted(manifest, input, picture, name) {
  const shape = pictureShape(manifest, input);
  if (!("shape" in picture)) return fitPicture(picture, input, shape[2], shape[3]);
  requireTensor(picture, shape, name);
  return picture;
}

/**
 * @param {Tensor} tensor
 * @param {number[]} shape
 * @param {string} name
 */
function requireTensor(tensor, shape, name) {
  const legal = tensor.data instanceof Float32Array && sameShape(tensor.shape, shape)
    && tensor.data.length === countOf(shape) && isFinite(tensor);
  requireRequest(legal, `${name} must be finite float32 [${shape}]`);
}

/**
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Request} request
 */
function tableOf(manifest, task, request) {
  const hasStart = isSet(task.flow.start);
  const strength = request.strength ?? (hasStart ? task.strength : null) ?? null;
  const steps = request.steps ?? task.steps;
  const ours = schedulesOf(manifest).filter((table) => isSet(table.strength) === hasStart);
  const table = ours.find((each) => each.steps === steps && (each.strength ?? null) === strength);
  if (table) return table;
  const pairs = ours.map((each) => (hasStart ? `${each.steps} at ${each.strength}` : `${each.steps}`));
  const wanted = strength === null ? `${steps} steps` : `${steps} steps at strength ${strength}`;
  throw new MtuError("request", `no table for ${wanted}; the bundle has: ${pairs.join(", ")}`);
}

/**
 * @param {Manifest} manifest
 * @param {Schedule} table
 * @param {Request} request
 */
function noiseOf(manifest, table, request) {
  const shape = latentShape(manifest);
  const most = 1 + table.passes.length;
  const least = 1 + draws(table);
  const { noise } = request;
  if (noise) {
    const count = noise.shape[0];
    requireRequest(count === least || count === most, `the noise must be [${least}, ...]`);
    requireTensor(noise, [count, ...shape.slice(1)], "the noise");
    return noise;
  }
  const seed = request.seed ?? 0;
  const legal = typeof seed === "bigint" ? seed >= 0n : Number.isSafeInteger(seed) && seed >= 0;
  requireRequest(legal, "a seed is a whole number of at least 0");
  const drawn = [least, ...shape.slice(1)];
  return { shape: drawn, data: standardNormal(seed, countOf(drawn)) };
}
