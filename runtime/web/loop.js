// Guidance and the loop over a table: "Guidance" and "The loop" of runtime/README.md.

import { MtuError } from "./errors.js";
import { entryOf, isFinite, scaled, weightedSum } from "./tensors.js";
import { sameShape } from "./wiring.js";

/**
 * @typedef {import("./types.js").Guidance} Guidance
 * @typedef {import("./types.js").Schedule} Schedule
 * @typedef {import("./types.js").Pass} Pass
 * @typedef {import("./types.js").Tensor} Tensor
 *
 * @typedef {{ text: boolean, image: boolean }} Branch
 * @typedef {(latent: Tensor, pass: Pass) => Promise<Tensor>} Denoise
 * @typedef {{ x: Tensor, m: Tensor }} State Before a pass, and what the pass gave.
 */

const HISTORY = 4;

/** @type {Record<Guidance["kind"], Branch[]>} */
const BRANCHES = {
  none: [{ text: true, image: true }],
  text: [{ text: false, image: true }, { text: true, image: true }],
  text_image: [
    { text: false, image: false },
    { text: false, image: true },
    { text: true, image: true },
  ],
};

/**
 * `none` where the scales turn guidance off, as in diffusers.
 * @param {Guidance} guidance
 * @returns {Guidance}
 */
function effective(guidance) {
  const { kind, text = 2, image = 1 } = guidance;
  const off = (kind !== "none" && text <= 1) || (kind === "text_image" && image < 1);
  return off ? { kind: "none" } : guidance;
}

/** @param {Guidance} guidance */
export function branchesOf(guidance) {
  return BRANCHES[effective(guidance).kind];
}

/**
 * The guided sum m, formed in float64.
 * @param {Guidance} guidance
 * @param {Tensor[]} outputs
 * @returns {Tensor}
 */
export function guide(guidance, outputs) {
  const { kind, text = 0, image = 0 } = effective(guidance);
  const scales = { none: [], text: [text], text_image: [image, text] }[kind];
  const [first] = outputs;
  const data = Float32Array.from(first.data, (value, i) => {
    let sum = value;
    scales.forEach((scale, k) => {
      sum += scale * (outputs[k + 1].data[i] - outputs[k].data[i]);
    });
    return sum;
  });
  return { shape: first.shape, data };
}

/** @param {Schedule} table */
export function draws(table) {
  return table.passes.some((pass) => pass.noise !== 0) ? table.passes.length : 0;
}

/**
 * x before the first pass.
 * @param {Schedule} table
 * @param {Tensor} noise
 * @param {Tensor | null} picture
 */
export function startOf(table, noise, picture) {
  /** @type {[number, Tensor][]} */
  const terms = [[Math.fround(table.start.noise), entryOf(noise, 0)]];
  if (picture) terms.push([Math.fround(table.start.picture), picture]);
  return weightedSum(terms);
}

/**
 * The guided m of pass `index` at x, checked.
 * @param {Denoise} denoise
 * @param {Schedule} table
 * @param {number} index
 * @param {Tensor} x
 */
export async function ask(denoise, table, index, x) {
  const pass = table.passes[index];
  const m = await denoise(scaled(x, pass.input_scale), pass);
  if (sameShape(m.shape, x.shape) && isFinite(m)) return m;
  throw new MtuError("not_finite", `pass ${index}: the prediction holds NaN or Inf or has another shape`);
}

/**
 * x after pass `index`, from the states up to and with it, newest first.
 * @param {Schedule} table
 * @param {number} index
 * @param {State[]} states
 * @param {Tensor} noise
 */
export function advance(table, index, states, noise) {
  const pass = table.passes[index];
  const { shape } = states[0].x;
  const sums = new Float64Array(states[0].x.data.length);
  states.slice(0, HISTORY).forEach(({ x, m }, k) => {
    for (let i = 0; i < sums.length; i += 1) sums[i] += pass.x[k] * x.data[i] + pass.m[k] * m.data[i];
  });
  if (pass.noise !== 0) {
    const fresh = entryOf(noise, index + 1).data;
    for (let i = 0; i < sums.length; i += 1) sums[i] += pass.noise * fresh[i];
  }
  return { shape, data: Float32Array.from(sums) };
}

/**
 * The states of all passes, and x after each.
 * @param {Denoise} denoise
 * @param {Schedule} table
 * @param {Tensor} noise
 * @param {Tensor | null} picture
 * @returns {AsyncGenerator<Tensor>}
 */
export async function* trajectory(denoise, table, noise, picture) {
  let x = startOf(table, noise, picture);
  /** @type {State[]} */
  let states = [];
  for (let index = 0; index < table.passes.length; index += 1) {
    const m = await ask(denoise, table, index, x);
    states = [{ x, m }, ...states.slice(0, HISTORY - 1)];
    x = advance(table, index, states, noise);
    yield x;
  }
}
