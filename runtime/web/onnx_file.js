// What rules 8 and 13 say of the inside of an ONNX file, from its protobuf fields alone.

import { MtuError, require, shown } from "./errors.js";

/** Message -> the fields that lead to external data, by the message they hold. */
const MESSAGES = {
  model: { 7: "graph", 25: "function" },
  graph: { 1: "node", 5: "tensor", 15: "sparse" },
  function: { 7: "node", 11: "attribute" },
  node: { 5: "attribute" },
  attribute: { 5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse" },
  sparse: { 1: "tensor", 2: "tensor" },
  tensor: { 13: "entry" },
  entry: {},
};
const PLAIN_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;
const DECODER = new TextDecoder("utf-8", { fatal: true });

/** @param {string} name */
export function isPlainName(name) {
  return PLAIN_NAME.test(name);
}

/**
 * The names of the files of external data; refuses a graph in a node by rule 13.
 * @param {Uint8Array} bytes
 * @param {string} what
 * @returns {Set<string>}
 */
export function locationsOf(bytes, what) {
  /** @type {Set<string>} */
  const names = new Set();
  walk(bytes, "model", what, names);
  return names;
}

/**
 * @param {Uint8Array} bytes
 * @param {keyof typeof MESSAGES} message
 * @param {string} what
 * @param {Set<string>} names
 */
function walk(bytes, message, what, names) {
  /** @type {Map<number, Uint8Array>} */
  const texts = new Map();
  for (const [number, content] of fields(bytes, what)) {
    if (message === "entry") texts.set(number, content);
    const inner = /** @type {Record<number, keyof typeof MESSAGES>} */ (MESSAGES[message])[number];
    if (!inner) continue;
    if (message === "attribute" && inner === "graph") {
      throw new MtuError("refused", `${what}: a node holds a graph of its own`, { rule: 13 });
    }
    walk(content, inner, what, names);
  }
  if (DECODER.decode(texts.get(1) ?? new Uint8Array()) !== "location") return;
  const location = DECODER.decode(texts.get(2) ?? new Uint8Array());
  require(isPlainName(location), `${what}: external data at ${shown(location)}`);
  names.add(location);
}

/**
 * [number, content] of the fields of a message that have content; others are stepped over.
 * @param {Uint8Array} bytes
 * @param {string} what
 * @returns {Generator<[number, Uint8Array]>}
 */
function* fields(bytes, what) {
  let at = 0;
  const number = () => {
    let value = 0;
    for (let shift = 0; shift < 70; shift += 7) {
      require(at < bytes.length, `${what}: a number that is cut off`);
      const byte = /** @type {number} */ (bytes[at]);
      at += 1;
      value += (byte & 127) * 2 ** shift;
      if (byte < 128) return value;
    }
    throw new Error(`${what}: a number without an end`);
  };
  while (at < bytes.length) {
    const tag = number();
    const wire = tag % 8;
    if (wire === 0) {
      number();
      continue;
    }
    require(wire === 1 || wire === 2 || wire === 5, `${what}: no protobuf message`);
    const length = wire === 2 ? number() : wire === 1 ? 8 : 4;
    require(at + length <= bytes.length, `${what}: a field that is cut off`);
    if (wire === 2) yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
    at += length;
  }
}
