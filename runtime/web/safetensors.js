// A safetensors file, checked by its header; tensors are read one at a time (rule 10).

import { require, shown } from "./errors.js";
import { isObject, parseJson } from "./json.js";

/** @typedef {import("./types.js").Tensor} Tensor */
/** @typedef {{ dtype: "F32" | "I32", shape: number[], begin: number, end: number }} Entry */

const LARGEST_HEADER = 4_000_000;

export class Safetensors {
  /**
   * @param {Blob} blob
   * @param {Map<string, Entry>} entries
   * @param {number} data Where the data begin.
   * @param {string} what
   */
  constructor(blob, entries, data, what) {
    this.blob = blob;
    this.entries = entries;
    this.data = data;
    this.what = what;
  }

  /**
   * @param {Blob} blob
   * @param {string} what
   */
  static async open(blob, what) {
    require(blob.size >= 8, `${what} is cut off`);
    const view = new DataView(await blob.slice(0, 8).arrayBuffer());
    const length = Number(view.getBigUint64(0, true));
    require(length <= LARGEST_HEADER && length <= blob.size - 8, `${what}: a header of ${length} bytes`);
    const header = parseJson(new Uint8Array(await blob.slice(8, 8 + length).arrayBuffer()), what);
    require(isObject(header), `${what}: its header is no object`);
    /** @type {Map<string, Entry>} */
    const entries = new Map();
    for (const [name, entry] of Object.entries(header)) {
      if (name !== "__metadata__") {
        entries.set(name, checked(entry, blob.size - 8 - length, `${what}: ${shown(name)}`));
      }
    }
    return new Safetensors(blob, entries, 8 + length, what);
  }

  /** @param {string} name */
  shape(name) {
    return this.entries.get(name)?.shape;
  }

  /**
   * @param {string} name
   * @returns {Promise<Tensor>}
   */
  async tensor(name) {
    const entry = this.entries.get(name);
    require(entry, `${this.what}: ${shown(name)} is missing`);
    const slice = this.blob.slice(this.data + entry.begin, this.data + entry.end);
    const buffer = await slice.arrayBuffer();
    if (entry.dtype === "I32") return { shape: entry.shape, data: new Int32Array(buffer) };
    const data = new Float32Array(buffer);
    require(data.every(Number.isFinite), `${this.what}: ${shown(name)} is not finite`);
    return { shape: entry.shape, data };
  }
}

/**
 * @param {unknown} entry
 * @param {number} size
 * @param {string} what
 * @returns {Entry}
 */
function checked(entry, size, what) {
  require(isObject(entry), `${what} is no object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  require(dtype === "F32" || dtype === "I32", `${what} is neither F32 nor I32`);
  require(isCounts(shape) && isCounts(offsets) && offsets.length === 2, `${what}: shape or offsets`);
  const [begin, end] = /** @type {[number, number]} */ (offsets);
  const bytes = 4 * shape.reduce((product, extent) => product * extent, 1);
  require(begin <= end && end <= size && end - begin === bytes, `${what} does not fit its shape`);
  return { dtype, shape, begin, end };
}

/**
 * @param {unknown} value
 * @returns {value is number[]}
 */
function isCounts(value) {
  return Array.isArray(value) && value.every((each) => Number.isSafeInteger(each) && each >= 0);
}
