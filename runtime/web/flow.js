// The evaluation of a flow for one request: "The flow" of runtime/README.md. What runs a part is a
// function, in any runtime.

import { requireRequest } from "./errors.js";
import { isSet, outputOf, promptedCalls } from "./flow_rules.js";
import { branchesOf, guide } from "./loop.js";
import { inputsOf } from "./rules.js";
import { concatenated, countOf, divided, entryOf, filled, scaled } from "./tensors.js";
import { batchOf, partOf } from "./wiring.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Task} Task
 * @typedef {import("./types.js").Call} Call
 * @typedef {import("./types.js").Value} Value
 * @typedef {import("./types.js").Source} Source
 * @typedef {import("./types.js").Spec} Spec
 * @typedef {import("./types.js").Tensor} Tensor
 * @typedef {import("./types.js").Tensors} Tensors
 * @typedef {import("./types.js").Guidance} Guidance
 * @typedef {import("./types.js").Pass} Pass
 * @typedef {import("./types.js").When} When
 * @typedef {import("./loop.js").Branch} Branch
 *
 * @typedef {object} Fitted A request whose pictures are fitted.
 * @property {string | null} prompt
 * @property {string | null} negativePrompt
 * @property {Record<string, Tensor>} pictures
 * @property {Record<string, Tensor>} tensors
 * @property {Record<string, number>} numbers
 * @property {Guidance} guidance
 *
 * @typedef {(call: Call, feeds: Tensors) => Promise<Tensors>} RunCall
 * @typedef {(tokenizer: string, text: string) => Tensor} Tokenize
 *
 * @typedef {object} Point Where a source is asked.
 * @property {Branch} branch
 * @property {Pass} [pass]
 * @property {Tensor} [latent]
 * @property {Tensor} [guided]
 * @property {Map<string, Tensors>} outputs Of earlier calls of this stage.
 * @property {number} entry Of the batch.
 */

/** @type {Branch} */
const PROMPT = { text: true, image: true };

export class Evaluation {
  /**
   * @param {Manifest} manifest
   * @param {Task} task
   * @param {Tensors} constants
   * @param {Fitted} request
   * @param {RunCall} run
   * @param {Tokenize} tokenize
   */
  constructor(manifest, task, constants, request, run, tokenize) {
    this.manifest = manifest;
    this.task = task;
    this.constants = constants;
    this.request = request;
    this.run = run;
    this.tokenize = tokenize;
    this.prompted = promptedCalls(task);
    this.branches = branchesOf(request.guidance);
    /** @type {Map<string, Tensors>} Of once calls: by id for the prompt, `id -` for the negative. */
    this.once = new Map();
  }

  /** @param {When} when */
  calls(when) {
    return this.task.flow.calls.filter((call) => call.when === when);
  }

  async runOnce() {
    const negative = isSet(this.request.negativePrompt) && this.branches.some((branch) => !branch.text);
    for (const call of this.calls("once")) {
      const texts = negative && this.prompted.has(call.id) ? [true, false] : [true];
      for (const text of texts) {
        const point = { branch: { text, image: true }, outputs: new Map(), entry: 0 };
        this.once.set(text ? call.id : `${call.id} -`, await this.run(call, this.single(call, point)));
      }
    }
  }

  /** What the loop begins from beside noise; null where it is noise alone. */
  start() {
    const { start } = this.task.flow;
    if (!start) return null;
    return this.source(start, { branch: PROMPT, outputs: new Map(), entry: 0 }, null);
  }

  /**
   * The guided m of a pass.
   * @param {Tensor} latent input_scale · x
   * @param {Pass} pass
   */
  async denoise(latent, pass) {
    const { prediction } = this.task.flow;
    requireRequest(prediction, "the task has no loop");
    const batch = batchOf(this.manifest, this.task);
    /** @type {Tensor[]} */
    const predictions = [];
    for (let begin = 0; begin < this.branches.length; begin += batch) {
      const chunk = this.branches.slice(begin, begin + batch);
      const last = chunk[chunk.length - 1];
      const entries = Array.from({ length: batch }, (_, entry) => chunk[entry] ?? last);
      /** @type {Map<string, Tensors>} */
      const outputs = new Map();
      for (const call of this.calls("pass")) {
        const points = entries.map((branch, entry) => ({ branch, pass, latent, outputs, entry }));
        outputs.set(call.id, await this.run(call, this.batched(call, points)));
      }
      const output = /** @type {Tensors} */ (outputs.get(prediction.call))[prediction.name];
      chunk.forEach((_, entry) => predictions.push(entryOf(output, entry)));
    }
    return this.refine(guide(this.request.guidance, predictions), latent, pass);
  }

  /**
   * @param {Tensor} guided
   * @param {Tensor} latent
   * @param {Pass} pass
   */
  async refine(guided, latent, pass) {
    const { refined } = this.task.flow;
    const outputs = await this.stage("guided", { pass, latent, guided });
    return refined ? /** @type {Tensors} */ (outputs.get(refined.call))[refined.name] : guided;
  }

  /**
   * The result [1, 3, H, W], not clipped.
   * @param {Tensor | undefined} latent
   */
  async picture(latent) {
    const { call, name } = this.task.flow.picture;
    const outputs = await this.stage("end", { latent });
    return /** @type {Tensors} */ (outputs.get(call) ?? this.once.get(call))[name];
  }

  /**
   * Calls of batch 1.
   * @param {When} when
   * @param {{ pass?: Pass, latent?: Tensor, guided?: Tensor }} at
   */
  async stage(when, at) {
    /** @type {Map<string, Tensors>} */
    const outputs = new Map();
    for (const call of this.calls(when)) {
      const point = { ...at, branch: PROMPT, outputs, entry: 0 };
      outputs.set(call.id, await this.run(call, this.single(call, point)));
    }
    return outputs;
  }

  // --------------------------------------------------------------------------------- values

  /**
   * @param {Call} call
   * @returns {Spec[]}
   */
  specs(call) {
    return inputsOf(partOf(this.manifest, call), this.task.name);
  }

  /**
   * @param {Call} call
   * @param {Point} point
   */
  single(call, point) {
    return this.batched(call, [point]);
  }

  /**
   * The inputs of a call: an entry for each point, or one value for all.
   * @param {Call} call
   * @param {Point[]} points
   */
  batched(call, points) {
    /** @type {Tensors} */
    const feeds = Object.create(null);
    for (const spec of this.specs(call)) {
      const entries = spec.shape[0] === points.length ? points : points.slice(0, 1);
      const values = entries.map((point) => this.value(call.inputs[spec.name], point, spec));
      feeds[spec.name] = concatenated(values, 0);
    }
    return feeds;
  }

  /**
   * @param {Value} value
   * @param {Point} point
   * @param {Spec} spec
   */
  value(value, point, spec) {
    if (isSet(value.empty) && !point.branch.text && !isSet(this.request.negativePrompt)) {
      return this.constants[value.empty];
    }
    const tensors = value.sources.map((source) => this.source(source, point, spec));
    return concatenated(tensors, value.axis ?? 0);
  }

  /**
   * @param {Source} source
   * @param {Point} point
   * @param {Spec | null} spec
   * @returns {Tensor}
   */
  source(source, point, spec) {
    const tensor = this.raw(source, point, spec);
    const { only } = source;
    if (only && !point.branch[only === "prompt" ? "text" : "image"]) return filled(tensor.shape, 0);
    if (isSet(source.multiply)) return scaled(tensor, source.multiply);
    return isSet(source.divide) ? divided(tensor, source.divide) : tensor;
  }

  /**
   * @param {Source} source
   * @param {Point} point
   * @param {Spec | null} spec
   * @returns {Tensor}
   */
  raw(source, point, spec) {
    const name = source.name ?? "";
    const shape = spec ? [1, ...spec.shape.slice(1)] : [];
    switch (source.kind) {
      case "latent":
        return /** @type {Tensor} */ (point.latent);
      case "guided":
        return /** @type {Tensor} */ (point.guided);
      case "column": {
        const column = /** @type {Pass} */ (point.pass).columns[name];
        if (!Array.isArray(column)) return filled(shape, column);
        return { shape: [1, column.length], data: Float32Array.from(column) };
      }
      case "number": {
        const input = /** @type {{ default: number }} */ (this.task.inputs.numbers?.[name]);
        return filled(shape, this.request.numbers[name] ?? input.default);
      }
      case "constant":
        return this.constants[name];
      case "tokens": {
        const { prompt, negativePrompt } = this.request;
        return this.tokenize(source.tokenizer ?? "", (point.branch.text ? prompt : negativePrompt) ?? "");
      }
      case "picture":
        return this.pictureSource(source);
      case "tensor":
        return this.request.tensors[name];
      case "output":
        return this.output(source, point);
    }
  }

  /**
   * @param {Source} source
   * @param {Point} point
   */
  output(source, point) {
    const { call, name } = outputOf(source);
    const local = point.outputs.get(call)?.[name];
    if (local) return local.shape[0] === 1 ? local : entryOf(local, point.entry);
    const negative = !point.branch.text && isSet(this.request.negativePrompt) && this.prompted.has(call);
    return /** @type {Tensors} */ (this.once.get(negative ? `${call} -` : call))[name];
  }

  /** @param {Source} source */
  pictureSource(source) {
    let picture = this.request.pictures[source.name ?? ""];
    if (isSet(source.outside)) picture = outside(picture, this.request.pictures[source.outside]);
    if (isSet(source.every)) return cells(picture, source.every, (cell) => cell(0, 0));
    if (!isSet(source.mean)) return picture;
    const n = source.mean;
    return cells(picture, n, (cell) => {
      let sum = 0;
      for (let y = 0; y < n; y += 1) for (let x = 0; x < n; x += 1) sum += cell(y, x);
      return sum / (n * n);
    });
  }
}

/**
 * picture · (mask < 0.5).
 * @param {Tensor} picture
 * @param {Tensor} mask
 * @returns {Tensor}
 */
function outside(picture, mask) {
  const count = countOf(mask.shape);
  const data = Float32Array.from(picture.data, (value, i) => value * (mask.data[i % count] < 0.5 ? 1 : 0));
  return { shape: picture.shape, data };
}

/**
 * A number of each cell of n x n pixels.
 * @param {Tensor} picture
 * @param {number} n
 * @param {(cell: (y: number, x: number) => number) => number} number
 * @returns {Tensor}
 */
function cells(picture, n, number) {
  const [, channels, height, width] = /** @type {[number, number, number, number]} */ (picture.shape);
  const shape = [1, channels, height / n, width / n];
  const data = new Float32Array(countOf(shape));
  let at = 0;
  for (let top = 0; top < channels * height; top += n) {
    for (let left = 0; left < width; left += n) {
      data[at] = number((y, x) => picture.data[(top + y) * width + left + x]);
      at += 1;
    }
  }
  return { shape, data };
}
