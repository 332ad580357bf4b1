// A part in ONNX Runtime Web, which the caller hands in.

import { MtuError, reason, require, shown } from "./errors.js";
import { inputsOf } from "./rules.js";
import { sameShape } from "./wiring.js";

/**
 * @typedef {import("./bundle.js").Bundle} Bundle
 * @typedef {import("./types.js").Part} Part
 * @typedef {import("./types.js").Spec} Spec
 * @typedef {import("./types.js").Session} Session
 * @typedef {import("./types.js").Tensors} Tensors
 *
 * @typedef {{ dims: readonly number[], data: any }} OrtTensor
 * @typedef {object} OrtSession
 * @property {readonly string[]} inputNames
 * @property {readonly string[]} outputNames
 * @property {(feeds: any, fetches: string[]) => Promise<Record<string, any>>} run
 * @property {() => Promise<void>} release
 *
 * @typedef {object} Ort What this module uses of `onnxruntime-web`.
 * @property {{ create: (bytes: Uint8Array, options?: any) => Promise<OrtSession> }} InferenceSession
 * @property {new (type: any, data: any, dims: number[]) => any} Tensor
 */

/** Activations that int8 weights multiply stay float32: the proof and the goldens hold for this. */
const EXTRA = { session: { qdq_matmulnbits_accuracy_level: "1" } };
const LARGE = 1e9;

/**
 * Loads a part; above 1 GB of external data without graph optimisation, which would copy weights.
 * @param {Ort} ort
 * @param {Bundle} bundle
 * @param {Part} part
 * @param {string} task
 * @param {Record<string, unknown>} options Of the session, such as `executionProviders`.
 * @returns {Promise<Session>}
 */
export async function openPart(ort, bundle, part, task, options) {
  const path = `${part.path}/${part.entries[task]}`;
  const names = [...(bundle.data.get(path) ?? [])];
  let session;
  try {
    const externalData = await Promise.all(names.map(async (name) => ({
      path: name, data: await bytesOf(bundle, `${part.path}/${name}`),
    })));
    const size = externalData.reduce((sum, each) => sum + each.data.length, 0);
    session = await ort.InferenceSession.create(await bytesOf(bundle, path), {
      logSeverityLevel: 3,
      extra: EXTRA,
      ...(size > LARGE
        ? { graphOptimizationLevel: "disabled", enableCpuMemArena: false, enableMemPattern: false } : {}),
      ...(externalData.length ? { externalData } : {}),
      ...options,
    });
  } catch (error) {
    if (error instanceof MtuError) throw error;
    throw new MtuError("runtime", `ONNX Runtime cannot load ${part.name}: ${reason(error)}`, { cause: error });
  }
  const inputs = inputsOf(part, task);
  try {
    requireNames(session, inputs, part);
  } catch (error) {
    await session.release();
    throw new MtuError("refused", reason(error), { cause: error });
  }
  return {
    run: (feeds) => run(ort, session, part, inputs, feeds),
    close: () => session.release(),
  };
}

/**
 * @param {Bundle} bundle
 * @param {string} path
 */
async function bytesOf(bundle, path) {
  return new Uint8Array(await bundle.files.blob(path).arrayBuffer());
}

/**
 * @param {OrtSession} session
 * @param {Spec[]} inputs
 * @param {Part} part
 */
function requireNames(session, inputs, part) {
  const names = inputs.map((spec) => spec.name).sort();
  const same = shown([...session.inputNames].sort()) === shown(names);
  require(same, `${part.name}: its inputs are not those of the manifest`);
  const there = part.outputs.every((spec) => session.outputNames.includes(spec.name));
  require(there, `${part.name}: its outputs are not those of the manifest`);
}

/**
 * @param {Ort} ort
 * @param {OrtSession} session
 * @param {Part} part
 * @param {Spec[]} inputs
 * @param {Tensors} feeds
 */
async function run(ort, session, part, inputs, feeds) {
  /** @type {Record<string, OrtTensor>} */
  const values = Object.create(null);
  for (const { name, dtype } of inputs) {
    values[name] = new ort.Tensor(dtype, feeds[name].data, feeds[name].shape);
  }
  let results;
  try {
    results = await session.run(values, part.outputs.map((spec) => spec.name));
  } catch (error) {
    throw new MtuError("runtime", `ONNX Runtime failed in ${part.name}: ${reason(error)}`, { cause: error });
  }
  /** @type {Tensors} */
  const outputs = Object.create(null);
  for (const { name, shape } of part.outputs) {
    const result = results[name];
    if (!result || !sameShape([...result.dims], shape) || !(result.data instanceof Float32Array)) {
      throw new MtuError("refused", `${part.name}: output ${shown(name)} is not that of the manifest`);
    }
    outputs[name] = { shape, data: result.data };
  }
  return outputs;
}
