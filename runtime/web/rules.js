// The numbered rules of runtime/README.md that the manifest and the list of files decide: 5, 7, 8,
// 9 and 13. Each function throws an Error that says where.

import { require, shown } from "./errors.js";
import { isPlainName } from "./onnx_file.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Part} Part
 * @typedef {import("./files.js").Files} Files
 */

export const GOLDENS = "goldens.safetensors";
export const CONSTANTS = "constants.safetensors";
const LARGEST_PART = 64e9;
const LARGEST_GOLDENS = 4e9;
const LARGEST_FILE = 256e6;

/** @param {Manifest} manifest */
export function recordsOf(manifest) {
  return [...manifest.parts, ...(manifest.files ?? [])];
}

/** @param {Manifest} manifest */
export function schedulesOf(manifest) {
  return manifest.loop?.schedules ?? [];
}

/**
 * The inputs of a part for a task.
 * @param {Part} part
 * @param {string} task
 */
export function inputsOf(part, task) {
  return part.task_inputs?.[task] ?? part.inputs;
}

/** @param {Manifest} manifest */
export function checkDistinctPaths(manifest) {
  const paths = recordsOf(manifest).map((record) => record.path);
  requireDistinct(paths, "path");
  requireDistinct(manifest.tokenizers.map((tokenizer) => tokenizer.path), "tokenizer");
  const all = new Set(paths);
  for (const path of paths) {
    const names = path.split("/");
    for (let count = 1; count < names.length; count += 1) {
      const outer = names.slice(0, count).join("/");
      require(!all.has(outer), `path ${shown(path)} lies within ${shown(outer)}`);
    }
  }
}

/**
 * @param {Manifest} manifest
 * @param {Files} files
 */
export function checkOpened(manifest, files) {
  const listed = new Set((manifest.files ?? []).map((file) => file.path));
  const opened = [
    ...manifest.tokenizers.map((tokenizer) => tokenizer.path),
    ...manifest.parts.flatMap((part) => part.data ?? []),
    ...[CONSTANTS, GOLDENS].filter((name) => files.has(name)),
  ];
  for (const path of opened) require(listed.has(path), `files has no entry for ${shown(path)}`);
}

/**
 * @param {Manifest} manifest
 * @param {Files} files
 */
export function checkNames(manifest, files) {
  requireDistinct(manifest.parts.map((part) => part.name), "part");
  requireDistinct(manifest.tasks.map((task) => task.name), "task");
  const tables = schedulesOf(manifest).map((table) => `${table.steps} steps, ${table.strength ?? "no"} strength`);
  requireDistinct(tables, "table");
  for (const task of manifest.tasks) {
    requireDistinct(task.flow.calls.map((call) => call.id), `call of task ${task.name}:`);
  }
  for (const part of manifest.parts) {
    checkPartNames(manifest, part);
    if (manifest.target !== "onnx") continue;
    for (const entry of new Set(Object.values(part.entries))) {
      requireFile(files, part, entry, `parts: ${part.name}: entry`);
    }
  }
}

/**
 * The end of rule 8, of an entry and of each location of external data.
 * @param {Files} files
 * @param {Part} part
 * @param {string} name
 * @param {string} what
 */
export function requireFile(files, part, name, what) {
  const exists = isPlainName(name) && files.has(`${part.path}/${name}`);
  require(exists, `${what} ${shown(name)} is no file of ${part.path}`);
}

/**
 * @param {Manifest} manifest
 * @param {Part} part
 */
function checkPartNames(manifest, part) {
  const where = `parts: ${part.name}`;
  require(part.name !== "pipeline", "no part is called pipeline");
  const callers = manifest.tasks.filter((task) => task.flow.calls.some((call) => call.part === part.name));
  const users = new Set(callers.map((task) => task.name));
  const entries = Object.keys(part.entries);
  const same = entries.length === users.size && entries.every((task) => users.has(task));
  require(users.size && same, `${where}.entries are not those of the tasks that call it`);
  for (const tasks of [part.task_inputs, part.cost.task_weight_bytes, part.witness]) {
    for (const task of Object.keys(tasks ?? {})) {
      require(users.has(task), `${where}: ${shown(task)} is no task of its entries`);
    }
  }
  const names = part.inputs.map((input) => input.name);
  requireDistinct(names, `input of ${part.name}:`);
  requireDistinct(part.outputs.map((output) => output.name), `output of ${part.name}:`);
  for (const inputs of Object.values(part.task_inputs ?? {})) {
    const alike = inputs.length === names.length && inputs.every((input, i) => input.name === names[i]);
    require(alike, `${where}.task_inputs: the names are not those of inputs`);
  }
}

/** @param {Manifest} manifest */
export function checkTables(manifest) {
  for (const [index, table] of schedulesOf(manifest).entries()) {
    const where = `loop.schedules[${index}]`;
    for (const [i, pass] of table.passes.entries()) {
      const back = [...pass.x.slice(i + 1), ...pass.m.slice(i + 1)];
      require(back.every((value) => value === 0), `${where}: pass ${i} looks back before the start`);
      require(typeof pass.columns.timestep === "number", `${where}: pass ${i} has no timestep`);
    }
    const without = table.strength === undefined || table.strength === null;
    require(!without || table.start.picture === 0, `${where}: start.picture needs a strength`);
  }
}

/** @param {Manifest} manifest */
export function checkLimits(manifest) {
  for (const part of manifest.parts) requireAtMost(part.bytes, LARGEST_PART, part.path);
  for (const file of manifest.files ?? []) {
    requireAtMost(file.bytes, file.path === GOLDENS ? LARGEST_GOLDENS : LARGEST_FILE, file.path);
  }
}

/**
 * @param {number} bytes
 * @param {number} most
 * @param {string} path
 */
function requireAtMost(bytes, most, path) {
  require(bytes <= most, `${path}: ${bytes} bytes, at most ${most}`);
}

/**
 * @param {string[]} names
 * @param {string} what
 */
function requireDistinct(names, what) {
  const seen = new Set();
  for (const name of names) {
    require(!seen.has(name), `${what} ${shown(name)} is there twice`);
    seen.add(name);
  }
}
