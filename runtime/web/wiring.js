// Rule 12: shapes and types of a flow fit, decided from the manifest and the constants.

import { require, shown } from "./errors.js";
import { callOf, isSet, outputOf, outputSpec, promptedCalls } from "./flow_rules.js";
import { inputsOf, schedulesOf } from "./rules.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Task} Task
 * @typedef {import("./types.js").Call} Call
 * @typedef {import("./types.js").Spec} Spec
 * @typedef {import("./types.js").Source} Source
 * @typedef {import("./types.js").Value} Value
 * @typedef {import("./types.js").OutputName} OutputName
 * @typedef {import("./types.js").Tensors} Tensors
 */

const LARGEST_BATCH = 64;

/**
 * [1, C, h, w] of a manifest with a latent.
 * @param {Manifest} manifest
 */
export function latentShape(manifest) {
  const { latent, image } = manifest;
  require(latent, "the manifest has no latent");
  return [1, latent.channels, image.height / latent.factor, image.width / latent.factor];
}

/**
 * [1, 3 or 1, H, W] of a picture of the request.
 * @param {Manifest} manifest
 * @param {import("./types.js").PictureInput} picture
 */
export function pictureShape(manifest, picture) {
  return [1, picture.kind === "picture" ? 3 : 1, manifest.image.height, manifest.image.width];
}

/**
 * The batch of the calls in a pass, their first extent other than 1.
 * @param {Manifest} manifest
 * @param {Task} task
 */
export function batchOf(manifest, task) {
  const calls = task.flow.calls.filter((call) => call.when === "pass");
  const extents = calls.flatMap((call) => {
    const part = partOf(manifest, call);
    return [...inputsOf(part, task.name), ...part.outputs].map((spec) => spec.shape[0] ?? 0);
  });
  const batch = Math.max(1, ...extents);
  require(extents.every((extent) => extent === 1 || extent === batch), `task ${task.name}: several batches`);
  return batch;
}

/**
 * @param {number[] | undefined} one
 * @param {number[] | undefined} other
 */
export function sameShape(one, other) {
  if (!one || !other) return false;
  return one.length === other.length && one.every((extent, i) => extent === other[i]);
}

/**
 * Throws an Error that names the call and the input. A task whose parts are not all there does not
 * run, and is not looked at.
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Tensors} constants
 */
export function checkWiring(manifest, task, constants) {
  if (missingParts(manifest, task).length === 0) new Wiring(manifest, task, constants).check();
}

/**
 * Parts that a task calls and the bundle has not.
 * @param {Manifest} manifest
 * @param {Task} task
 */
export function missingParts(manifest, task) {
  const names = manifest.parts.map((part) => part.name);
  return task.flow.calls.map((call) => call.part).filter((part) => !names.includes(part));
}

/**
 * @param {Manifest} manifest
 * @param {Call} call
 */
export function partOf(manifest, call) {
  const part = manifest.parts.find((each) => each.name === call.part);
  require(part, `the bundle has no ${call.part}`);
  return part;
}

class Wiring {
  /**
   * @param {Manifest} manifest
   * @param {Task} task
   * @param {Tensors} constants
   */
  constructor(manifest, task, constants) {
    this.manifest = manifest;
    this.task = task;
    this.constants = constants;
    this.where = `task ${task.name}`;
    this.prompted = promptedCalls(task);
    this.batch = 1;
  }

  check() {
    const { manifest, task } = this;
    const hasLoop = isSet(task.flow.prediction);
    if (hasLoop) {
      require(manifest.latent && schedulesOf(manifest).length, `${this.where}: no latent or no table`);
      const { height, width } = manifest.image;
      const { factor } = manifest.latent;
      require(height % factor === 0 && width % factor === 0, "latent.factor does not divide the picture");
    }
    for (const call of task.flow.calls) {
      const part = partOf(manifest, call);
      const specs = [...inputsOf(part, task.name), ...part.outputs];
      require(specs.every((spec) => spec.shape.length), `${part.name}: a tensor without a first extent`);
      const floats = part.outputs.every((spec) => spec.dtype === "float32");
      require(floats, `${part.name}: its outputs must be float32`);
    }
    this.batch = batchOf(manifest, task);
    require(this.batch <= LARGEST_BATCH, `${this.where}: a batch of ${this.batch}`);
    for (const call of task.flow.calls) {
      for (const spec of inputsOf(partOf(manifest, call), task.name)) {
        const value = /** @type {Value} */ (call.inputs[spec.name]);
        this.checkInput(call, spec, value, `${this.where}: ${call.id}: ${shown(spec.name)}`);
      }
    }
    this.checkResults();
  }

  /**
   * @param {Call} call
   * @param {Spec} spec
   * @param {Value} value
   * @param {string} where
   */
  checkInput(call, spec, value, where) {
    const tokens = value.sources.filter((source) => source.kind === "tokens");
    const alike = tokens.length === 0 || tokens.length === value.sources.length;
    const plain = tokens.every((source) => !isSet(source.multiply) && !isSet(source.divide));
    require(alike && plain, `${where}: tokens are neither joined with other kinds nor scaled`);
    const dtype = tokens.length ? "int32" : "float32";
    require(spec.dtype === dtype, `${where} must be ${dtype}`);
    const batch = spec.shape[0];
    require(batch === 1 || call.when === "pass", `${where}: a batch of ${batch}`);
    const shared = call.when === "pass" && batch === 1 && this.batch > 1;
    require(!shared || !this.varies(value), `${where} differs by branch and has batch 1`);
    const expected = [1, ...spec.shape.slice(1)];
    const shape = this.valueShape(value, expected, where);
    require(sameShape(shape, expected), `${where} must be [${expected}], it gets [${shape}]`);
    if (isSet(value.empty)) {
      require(sameShape(this.constant(value.empty), expected), `${where}: the shape of empty`);
    }
  }

  /** @param {Value} value */
  varies(value) {
    return isSet(value.empty) || value.sources.some((source) => {
      if (isSet(source.only)) return true;
      if (source.kind !== "output") return false;
      return this.prompted.has(source.call ?? "") || callOf(this.task, source.call ?? "").when === "pass";
    });
  }

  /**
   * @param {Value} value
   * @param {number[]} expected
   * @param {string} where
   */
  valueShape(value, expected, where) {
    const shapes = value.sources.map((source) => this.sourceShape(source, expected, where));
    const first = /** @type {number[]} */ (shapes[0]);
    require(shapes.every((shape) => shape[0] === 1), `${where}: a source's first extent is not 1`);
    if (shapes.length === 1) return first;
    const fills = value.sources.some((source) => this.fills(source));
    require(!fills, `${where}: what fills the input is not alone`);
    const axis = value.axis ?? 0;
    const total = shapes.reduce((sum, shape) => sum + (shape[axis] ?? NaN), 0);
    const joined = replaced(first, axis, total);
    const fit = axis < first.length
      && shapes.every((shape) => sameShape(replaced(shape, axis, total), joined));
    require(fit, `${where}: its sources cannot be joined along axis ${axis}`);
    return joined;
  }

  /** @param {Source} source */
  fills(source) {
    if (source.kind === "number") return true;
    return source.kind === "column" && this.columnLength(source.name ?? "") === null;
  }

  /**
   * @param {Source} source
   * @param {number[]} expected
   * @param {string} where
   * @returns {number[]}
   */
  sourceShape(source, expected, where) {
    const name = source.name ?? "";
    switch (source.kind) {
      case "latent":
      case "guided":
        return latentShape(this.manifest);
      case "column": {
        const length = this.columnLength(name);
        return length === null ? expected : [1, length];
      }
      case "number":
        return expected;
      case "constant":
        return this.constant(name);
      case "tokens": {
        const record = this.manifest.tokenizers.find((each) => each.path === source.tokenizer);
        const length = record?.length ?? 0;
        require(length >= 3 && length <= 1024, `${where}: a prompt has 3 to 1024 tokens`);
        return [1, length];
      }
      case "picture":
        return this.pictureShape(source, where);
      case "tensor":
        return /** @type {{ shape: number[] }} */ (this.task.inputs.tensors?.[name]).shape;
      case "output":
        return this.outputShape(outputOf(source), where);
    }
  }

  /**
   * The length of a column of the tables; null of a number.
   * @param {string} name
   */
  columnLength(name) {
    const values = schedulesOf(this.manifest).flatMap((table) =>
      table.passes.map((pass) => pass.columns[name]));
    require(values.every(isSet), `loop: a pass has no column ${shown(name)}`);
    const lengths = new Set(values.map((value) => (Array.isArray(value) ? value.length : null)));
    require(lengths.size === 1, `loop: column ${shown(name)} is not alike in every pass`);
    return /** @type {number | null} */ ([...lengths][0]);
  }

  /**
   * @param {Source} source
   * @param {string} where
   */
  pictureShape(source, where) {
    const picture = this.task.inputs.pictures?.[source.name ?? ""];
    require(picture, `${where}: no such picture`);
    const [one, channels, height, width] = /** @type {[number, number, number, number]} */ (
      pictureShape(this.manifest, picture));
    const step = source.every ?? source.mean ?? 1;
    require(height % step === 0 && width % step === 0, `${where}: ${step} does not divide the picture`);
    return [one, channels, height / step, width / step];
  }

  /**
   * @param {OutputName} output
   * @param {string} where
   */
  outputShape(output, where) {
    const spec = outputSpec(this.manifest, this.task, output);
    require(spec, `${where}: no such output`);
    const batches = callOf(this.task, output.call).when === "pass" ? [1, this.batch] : [1];
    require(batches.includes(spec.shape[0] ?? 0), `${where}: ${shown(output.name)} has another batch`);
    return [1, ...spec.shape.slice(1)];
  }

  checkResults() {
    const { flow } = this.task;
    const { height, width } = this.manifest.image;
    const latent = isSet(flow.prediction) ? latentShape(this.manifest) : [];
    /** @type {[string, OutputName | null | undefined, number[]][]} */
    const results = [
      ["prediction", flow.prediction, latent],
      ["refined", flow.refined, latent],
      ["picture", flow.picture, [1, 3, height, width]],
    ];
    for (const [key, output, expected] of results) {
      if (!isSet(output)) continue;
      const shape = this.outputShape(output, `${this.where}: ${key}`);
      require(sameShape(shape, expected), `${this.where}: ${key} must be [${expected}], it is [${shape}]`);
    }
    if (isSet(flow.prediction)) {
      const batch = outputSpec(this.manifest, this.task, flow.prediction)?.shape[0];
      require(batch === this.batch, `${this.where}: prediction has batch ${batch}, its pass ${this.batch}`);
    }
    if (isSet(flow.start)) {
      const shape = this.sourceShape(flow.start, latent, `${this.where}: start`);
      require(sameShape(shape, latent), `${this.where}: start is [${shape}], not the latent's shape`);
    }
  }

  /** @param {string} name */
  constant(name) {
    const tensor = this.constants[name];
    require(tensor, `constants.safetensors: ${shown(name)} is missing`);
    require(tensor.data instanceof Float32Array, `constants.safetensors: ${shown(name)} is not float32`);
    return tensor.shape;
  }
}

/**
 * @param {number[]} shape
 * @param {number} axis
 * @param {number} extent
 */
function replaced(shape, axis, extent) {
  return shape.map((each, index) => (index === axis ? extent : each));
}
