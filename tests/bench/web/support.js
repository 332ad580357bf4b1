// runtime/testdata, read as runtime/README.md says: edits of a bundle, parts of closed form.

import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { inflateSync } from "node:zlib";

export const TESTDATA = new URL("../../../runtime/testdata/", import.meta.url);

/** @param {string} name */
export function bytesOf(name) {
  return new Uint8Array(readFileSync(new URL(name, TESTDATA)));
}

/**
 * @param {string} name
 * @returns {any}
 */
export function read(name) {
  return JSON.parse(readFileSync(new URL(name, TESTDATA), "utf8"));
}

/**
 * The files of a folder of testdata by path.
 * @param {string} name
 * @returns {Map<string, Uint8Array>}
 */
export function filesOf(name) {
  const names = readdirSync(new URL(`${name}/`, TESTDATA), { recursive: true, withFileTypes: true });
  const root = new URL(`${name}/`, TESTDATA).pathname;
  const paths = names.filter((entry) => entry.isFile())
    .map((entry) => `${entry.parentPath ?? entry.path}/${entry.name}`.replace("//", "/").slice(root.length));
  return new Map(paths.map((path) => [path, bytesOf(`${name}/${path}`)]));
}

/**
 * The levels of a PNG of 8-bit RGB, row by row: what testdata has.
 * @param {string} name
 */
export function pngLevels(name) {
  const bytes = Buffer.from(bytesOf(name));
  const [width, height] = [bytes.readUInt32BE(16), bytes.readUInt32BE(20)];
  if (bytes.subarray(24, 29).toString("hex") !== "0802000000") throw new Error(`${name}: another kind of PNG`);
  const pieces = [];
  for (let at = 8; at < bytes.length; at += 12 + bytes.readUInt32BE(at)) {
    const data = bytes.subarray(at + 8, at + 8 + bytes.readUInt32BE(at));
    if (bytes.toString("latin1", at + 4, at + 8) === "IDAT") pieces.push(data);
  }
  const raw = inflateSync(Buffer.concat(pieces));
  const length = 3 * width;
  const levels = new Uint8Array(length * height);
  for (let y = 0; y < height; y += 1) {
    const filter = raw[y * (length + 1)];
    for (let x = 0; x < length; x += 1) {
      const left = x < 3 ? 0 : levels[y * length + x - 3];
      const up = y === 0 ? 0 : levels[(y - 1) * length + x];
      const corner = x < 3 || y === 0 ? 0 : levels[(y - 1) * length + x - 3];
      const [p, q, r] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
      const paeth = p <= q && p <= r ? left : q <= r ? up : corner;
      const predicted = [0, left, up, (left + up) >> 1, paeth][filter];
      levels[y * length + x] = raw[y * (length + 1) + 1 + x] + predicted;
    }
  }
  return { width, height, levels };
}

/** @param {Uint8Array} bytes */
export function sha256(bytes) {
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * Size and hash of a file or folder, by rule 6.
 * @param {Map<string, Uint8Array>} files
 * @param {string} path
 */
function sealed(files, path) {
  const file = files.get(path);
  if (file) return { bytes: file.length, sha256: sha256(file) };
  const inner = [...files.keys()].filter((each) => each.startsWith(`${path}/`)).sort();
  const lines = inner.map((each) => `${sha256(files.get(each))}  ${each.slice(path.length + 1)}\n`);
  const bytes = inner.reduce((sum, each) => sum + files.get(each).length, 0);
  return { bytes, sha256: sha256(new TextEncoder().encode(lines.join(""))) };
}

/**
 * The bundle with the edits of a case of hostile.json.
 * @param {any} edits
 */
export function edited(edits) {
  const files = filesOf("edit-onnx-int8");
  for (const edit of edits) {
    if (edit.op === "text") {
      const text = new TextDecoder().decode(files.get("manifest.json"));
      if (text.split(edit.old).length !== 2) throw new Error(`${edit.old} is not there once`);
      files.set("manifest.json", new TextEncoder().encode(text.replace(edit.old, () => edit.new)));
    } else if (["set", "delete", "seal"].includes(edit.op)) {
      const manifest = JSON.parse(new TextDecoder().decode(files.get("manifest.json")));
      inManifest(manifest, edit, files);
      files.set("manifest.json", new TextEncoder().encode(JSON.stringify(manifest)));
    } else {
      inFiles(files, edit);
    }
  }
  return files;
}

/**
 * @param {any} manifest
 * @param {any} edit
 * @param {Map<string, Uint8Array>} files
 */
function inManifest(manifest, edit, files) {
  if (edit.op === "seal") {
    const record = [...manifest.parts, ...manifest.files].find((each) => each.path === edit.path);
    Object.assign(record, sealed(files, edit.path));
    return;
  }
  const last = edit.path.at(-1);
  const node = edit.path.slice(0, -1).reduce((inner, key) => inner[key], manifest);
  if (edit.op === "set") node[last] = edit.value;
  else if (Array.isArray(node)) node.splice(last, 1);
  else delete node[last];
}

/**
 * @param {Map<string, Uint8Array>} files
 * @param {any} edit
 */
function inFiles(files, edit) {
  const { op, path } = edit;
  if (op === "write") {
    files.set(path, new Uint8Array(Buffer.from(edit.hex, "hex")));
    return;
  }
  if (op === "rename") {
    for (const [each, data] of [...files]) {
      if (each !== path && !each.startsWith(`${path}/`)) continue;
      files.delete(each);
      files.set(edit.to + each.slice(path.length), data);
    }
    return;
  }
  const bytes = files.get(path);
  if (op === "flip") {
    bytes[edit.at] ^= 1 << edit.bit;
  } else if (op === "bytes") {
    bytes.set(Buffer.from(edit.hex, "hex"), edit.at);
  } else if (op === "truncate") {
    files.set(path, bytes.slice(0, edit.bytes));
  } else if (op === "pad") {
    const padded = new Uint8Array(edit.bytes).fill(32);
    padded.set(bytes);
    files.set(path, padded);
  } else {
    throw new Error(`no edit ${op}`);
  }
}

/**
 * The parts of loops.json: a closed form, in float64.
 * @param {any[]} parts
 */
export function closedForm(parts) {
  return (name, feeds) => {
    const part = parts.find((each) => each.name === name);
    const names = part.inputs.map((input) => input.name).sort();
    if (Object.keys(feeds).sort().join() !== names.join()) throw new Error(`${name}: inputs`);
    const outputs = {};
    part.outputs.forEach((output, j) => {
      const [batch, ...inner] = output.shape;
      const count = inner.reduce((a, b) => a * b, 1);
      const sums = new Float64Array(batch * count);
      part.inputs.forEach((input, k) => {
        const { shape, data } = feeds[input.name];
        if (shape.join() !== input.shape.join()) throw new Error(`${name}: ${input.name} is [${shape}]`);
        const isInt = data instanceof Int32Array;
        if (isInt !== (input.dtype === "int32")) throw new Error(`${name}: ${input.name}: dtype`);
        const length = data.length / shape[0];
        for (let b = 0; b < batch; b += 1) {
          const from = shape[0] === 1 ? 0 : b * length;
          for (let t = 0; t < Math.max(length, count); t += 1) {
            const term = data[from + (t % length)] * Math.cos(t + k + 7 * j);
            sums[b * count + (t % count)] += input.weight * term;
          }
        }
      });
      outputs[output.name] = { shape: output.shape, data: Float32Array.from(sums, Math.tanh) };
    });
    return outputs;
  };
}
