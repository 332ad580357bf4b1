// A bundle, read by the rules of runtime/README.md, in its order.

import { MtuError, require, shown, underRule } from "./errors.js";
import { checkPath, openFiles } from "./files.js";
import { checkFlow } from "./flow_rules.js";
import { checkGoldens } from "./goldens.js";
import { isObject, parseJson } from "./json.js";
import SCHEMA from "./manifest_schema.js";
import { locationsOf } from "./onnx_file.js";
import {
  checkDistinctPaths,
  checkLimits,
  checkNames,
  checkOpened,
  checkTables,
  CONSTANTS,
  GOLDENS,
  recordsOf,
  requireFile,
} from "./rules.js";
import { Safetensors } from "./safetensors.js";
import { checkSchema } from "./schema.js";
import { checkWiring } from "./wiring.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Tensors} Tensors
 * @typedef {import("./types.js").FileRecord} FileRecord
 * @typedef {import("./files.js").Files} Files
 * @typedef {import("./files.js").BundleSource} BundleSource
 */

const MANIFEST = "manifest.json";
const LARGEST_MANIFEST = 4_000_000;
const LARGEST_CONSTANTS = 256_000_000;
const VERSION = /^2\.[0-9]{1,6}$/;

/**
 * @typedef {object} OpenOptions
 * @property {string[]} [tasks] Parts that none of these calls are neither fetched nor hashed.
 * @property {boolean} [goldens] Whether the goldens are fetched now; `verify` does it otherwise.
 * @property {string} [manifestSha256] Of the manifest: an app that downloads bundles ships it.
 * @property {AbortSignal} [signal]
 */

/** A bundle that passed the rules. */
export class Bundle {
  /**
   * @param {Manifest} manifest
   * @param {Files} files
   * @param {Tensors} constants
   * @param {Map<string, Set<string>>} data Files of external data by the path of their graph.
   */
  constructor(manifest, files, constants, data) {
    this.manifest = manifest;
    this.files = files;
    this.constants = constants;
    this.data = data;
    /** @type {Safetensors | null} */
    this.goldenFile = null;
  }

  /** The task of this name; the only one where none is named. @param {string} [name] */
  task(name) {
    const { tasks } = this.manifest;
    const names = tasks.map((task) => task.name).join(", ");
    const task = name === undefined && tasks.length === 1
      ? tasks[0] : tasks.find((each) => each.name === name);
    if (!task) throw new MtuError("request", `name a task; this bundle has: ${names}`);
    return task;
  }

  /** The goldens, fetched and checked once; null where the bundle has none. */
  async goldens() {
    if (this.goldenFile) return this.goldenFile;
    const record = this.manifest.files?.find((file) => file.path === GOLDENS);
    if (!record) return null;
    await underRule(6, () => this.files.readEntry(record));
    await underRule(6, () => this.files.checkHash(record));
    return this.checkedGoldens();
  }

  async checkedGoldens() {
    this.goldenFile = await underRule(10, () => Safetensors.open(this.files.blob(GOLDENS), GOLDENS));
    const file = this.goldenFile;
    await underRule(10, () => checkGoldens(this.manifest, file));
    return file;
  }
}

/**
 * Reads and checks a bundle: every rule that a browser can check. Throws MtuError: `refused` with
 * the number of the rule, `source`, `aborted`.
 * @param {BundleSource} source
 * @param {OpenOptions} [options]
 */
export async function openBundle(source, options = {}) {
  const files = await openFiles(source, options.signal);
  const manifest = await readManifest(files, options.manifestSha256);
  await underRule(4, () => recordsOf(manifest).forEach((record) => checkPath(files, record.path)));
  await underRule(5, () => checkDistinctPaths(manifest));
  await underRule(7, () => checkOpened(manifest, files));
  await underRule(8, () => checkNames(manifest, files));
  await underRule(9, () => checkTables(manifest));
  await underRule(11, () => manifest.tasks.forEach((task) => checkFlow(manifest, task)));
  await underRule(13, () => checkLimits(manifest));
  const records = openedRecords(manifest, options);
  const { signal } = options;
  for (const record of records) await underRule(6, () => files.readEntry(record));
  for (const record of records) {
    if (signal?.aborted) throw new MtuError("aborted", "aborted", { cause: signal.reason });
    await underRule(6, () => files.checkHash(record));
  }
  const data = await underRule(8, () => checkGraphs(manifest, files, records));
  const constants = await underRule(10, () => readConstants(files));
  await underRule(12, () => manifest.tasks.forEach((task) => checkWiring(manifest, task, constants)));
  const bundle = new Bundle(manifest, files, constants, data);
  if (options.goldens && files.has(GOLDENS)) await bundle.checkedGoldens();
  return bundle;
}

/**
 * Rules 1 to 3.
 * @param {Files} files
 * @param {string} [sha256]
 * @returns {Promise<Manifest>}
 */
async function readManifest(files, sha256) {
  const document = await underRule(1, async () => {
    require(files.has(MANIFEST), `${MANIFEST} is missing`);
    const blob = await files.read(MANIFEST, LARGEST_MANIFEST);
    require(blob.size <= LARGEST_MANIFEST, `${MANIFEST} has more than ${LARGEST_MANIFEST} bytes`);
    if (sha256 !== undefined) await files.checkHash({ path: MANIFEST, bytes: blob.size, sha256 });
    const value = parseJson(new Uint8Array(await blob.arrayBuffer()), MANIFEST);
    require(isObject(value), `${MANIFEST} does not hold an object`);
    return value;
  });
  await underRule(2, () => {
    const version = document.schema_version;
    const legal = typeof version === "string" && VERSION.test(version);
    require(legal, `schema_version ${shown(version)}: this reader takes 2.x`);
  });
  await underRule(3, () => checkSchema(document, SCHEMA));
  return /** @type {Manifest} */ (/** @type {unknown} */ (document));
}

/**
 * What is fetched and hashed: all but goldens and parts that nobody asked for.
 * @param {Manifest} manifest
 * @param {OpenOptions} options
 */
function openedRecords(manifest, options) {
  const tasks = manifest.tasks.filter((task) => options.tasks?.includes(task.name) ?? true);
  const called = new Set(tasks.flatMap((task) => task.flow.calls.map((call) => call.part)));
  const parts = manifest.parts.filter((part) => called.has(part.name));
  const skipped = manifest.parts.filter((part) => !called.has(part.name));
  const kept = new Set(parts.flatMap((part) => part.data ?? []));
  const data = new Set(skipped.flatMap((part) => part.data ?? []).filter((path) => !kept.has(path)));
  const files = (manifest.files ?? []).filter((file) => !data.has(file.path));
  return [...parts, ...files.filter((file) => options.goldens || file.path !== GOLDENS)];
}

/**
 * What rules 8 and 13 say of the inside of ONNX files.
 * @param {Manifest} manifest
 * @param {Files} files
 * @param {FileRecord[]} records
 */
async function checkGraphs(manifest, files, records) {
  /** @type {Map<string, Set<string>>} */
  const data = new Map();
  if (manifest.target !== "onnx") return data;
  for (const part of manifest.parts.filter((each) => records.includes(each))) {
    for (const entry of new Set(Object.values(part.entries))) {
      const path = `${part.path}/${entry}`;
      const names = locationsOf(new Uint8Array(await files.blob(path).arrayBuffer()), path);
      for (const name of names) requireFile(files, part, name, `${path}: external data`);
      data.set(path, names);
    }
  }
  return data;
}

/** @param {Files} files */
async function readConstants(files) {
  /** @type {Tensors} */
  const constants = Object.create(null);
  if (!files.has(CONSTANTS)) return constants;
  const blob = files.blob(CONSTANTS);
  require(blob.size <= LARGEST_CONSTANTS, `${CONSTANTS} has more than ${LARGEST_CONSTANTS} bytes`);
  const file = await Safetensors.open(blob, CONSTANTS);
  for (const name of file.entries.keys()) constants[name] = await file.tensor(name);
  return constants;
}
