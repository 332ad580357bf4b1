// The files of a bundle, from a web server or from memory. A browser has no symbolic links, and a
// web server tells nothing of them, so what rules 1 and 4 say of links cannot be checked here.

import { MtuError, reason, require, shown } from "./errors.js";
import { parseJson } from "./json.js";
import { sha256 } from "./sha256.js";

/**
 * Where a bundle is: the URL of its folder, with a list of its files (`paths`, relative to it) or
 * a `files.json` beside the manifest that holds this list; or its files by path.
 * @typedef {string | URL | { base: string | URL, paths: string[], fetch?: typeof fetch }
 *   | Map<string, Blob | Uint8Array | ArrayBuffer>} BundleSource
 *
 * @typedef {import("./types.js").FileRecord} FileRecord
 */

const LARGEST_LIST = 4_000_000;
const ENCODER = new TextEncoder();

/**
 * The files of a source.
 * @param {BundleSource} source
 * @param {AbortSignal} [signal]
 */
export async function openFiles(source, signal) {
  if (source instanceof Map) {
    const blobs = [...source].map(([path, data]) => /** @type {const} */ ([path, blobOf(data)]));
    const files = new Map(blobs);
    return new Files([...files.keys()], async (path) => /** @type {Blob} */ (files.get(path)));
  }
  const listed = typeof source === "object" && "base" in source ? source : null;
  const base = folderOf(listed ? listed.base : /** @type {string | URL} */ (source));
  const get = listed?.fetch ?? globalThis.fetch.bind(globalThis);
  /** @type {(path: string, most: number) => Promise<Blob>} */
  const read = (path, most) => download(get, new URL(encoded(path), base), path, most, signal);
  return new Files(listed ? listed.paths : await readList(read), read);
}

/** The files of a bundle; each is read once, so that what was hashed is what is used. */
export class Files {
  /**
   * @param {string[]} paths
   * @param {(path: string, most: number) => Promise<Blob>} read At most so many bytes and one.
   */
  constructor(paths, read) {
    this.paths = new Set(paths);
    this.readFile = read;
    /** @type {Map<string, Blob>} */
    this.blobs = new Map();
  }

  /** @param {string} path */
  has(path) {
    return this.paths.has(path);
  }

  /**
   * [path within, path] of the files of a folder in the order of their hash; of a file, itself.
   * @param {string} path
   * @returns {[string, string][]}
   */
  below(path) {
    if (this.has(path)) return [["", path]];
    const inner = [...this.paths].filter((each) => each.startsWith(`${path}/`));
    const names = inner.map((each) => each.slice(path.length + 1));
    for (const name of names) {
      require(isPlain(name), `${path}: ${shown(name)} is no plain file`);
    }
    const counted = names.filter((name) => !isMacos(name.slice(name.lastIndexOf("/") + 1)));
    return counted.sort(byCodePoints).map((name) => [name, `${path}/${name}`]);
  }

  /**
   * @param {string} path
   * @param {number} most
   * @returns {Promise<Blob>}
   */
  async read(path, most) {
    const kept = this.blobs.get(path);
    if (kept) return kept;
    const blob = await this.readFile(path, most);
    this.blobs.set(path, blob);
    return blob;
  }

  /**
   * A file that was read before.
   * @param {string} path
   */
  blob(path) {
    const blob = this.blobs.get(path);
    if (!blob) throw new MtuError("source", `${path} has not been read`);
    return blob;
  }

  /**
   * Rule 6, the sizes: reads what an entry of the manifest names.
   * @param {FileRecord} record
   */
  async readEntry(record) {
    let size = 0;
    for (const [, path] of this.below(record.path)) {
      size += (await this.read(path, record.bytes - size)).size;
      require(size <= record.bytes, `${record.path} has more than ${record.bytes} bytes`);
    }
    require(size === record.bytes, `${record.path} has ${size} bytes, not ${record.bytes}`);
  }

  /**
   * Rule 6, the hashes.
   * @param {FileRecord} record
   */
  async checkHash(record) {
    const files = this.below(record.path);
    let hash;
    if (this.has(record.path)) {
      hash = await sha256(this.blob(record.path));
    } else {
      let text = "";
      for (const [name, path] of files) text += `${await sha256(this.blob(path))}  ${name}\n`;
      hash = await sha256(new Blob([ENCODER.encode(text)]));
    }
    require(hash === record.sha256, `${record.path}: its sha256 is not the manifest's`);
  }
}

/**
 * Rule 4, of a `path` of the manifest.
 * @param {Files} files
 * @param {string} path
 */
export function checkPath(files, path) {
  require([...path].length <= 255, `path ${shown(path)} has more than 255 characters`);
  require(!/[\\:\0]/.test(path) && isPlain(path), `path ${shown(path)} is not plain`);
  require(!path.split("/").some(isMacos), `path ${shown(path)} is a file of macOS`);
  const inner = files.has(path) ? [] : files.below(path);
  require(files.has(path) || inner.length, `${shown(path)} is missing from the bundle`);
}

/** @param {string} name */
export function isMacos(name) {
  return name === ".DS_Store" || name.startsWith("._");
}

/** @param {string} path */
function isPlain(path) {
  return path.split("/").every((name) => name !== "" && name !== "." && name !== "..")
    && !path.includes("\0");
}

/**
 * @param {string} one
 * @param {string} other
 */
function byCodePoints(one, other) {
  const [a, b] = [[...one], [...other]];
  const at = a.findIndex((letter, index) => letter !== b[index]);
  if (at === -1) return a.length - b.length;
  const [left, right] = [a[at], b[at]];
  if (left === undefined || right === undefined) return right === undefined ? 1 : -1;
  return /** @type {number} */ (left.codePointAt(0)) - /** @type {number} */ (right.codePointAt(0));
}

/** @param {Blob | Uint8Array | ArrayBuffer} data */
function blobOf(data) {
  return data instanceof Blob ? data : new Blob([/** @type {BlobPart} */ (data)]);
}

/** @param {string | URL} base */
function folderOf(base) {
  const url = new URL(base, globalThis.location?.href);
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}

/** @param {string} path */
function encoded(path) {
  return path.split("/").map(encodeURIComponent).join("/");
}

/** @param {(path: string, most: number) => Promise<Blob>} read */
async function readList(read) {
  const blob = await read("files.json", LARGEST_LIST);
  try {
    require(blob.size <= LARGEST_LIST, `more than ${LARGEST_LIST} bytes`);
    const list = parseJson(new Uint8Array(await blob.arrayBuffer()), "files.json");
    require(Array.isArray(list) && list.every((path) => typeof path === "string"), "no list of paths");
    return /** @type {string[]} */ (list);
  } catch (error) {
    throw new MtuError("source", `files.json: ${reason(error)}`, { cause: error });
  }
}

/**
 * A file of a server, of which no more than `most` bytes and one piece are taken.
 * @param {typeof fetch} get
 * @param {URL} url
 * @param {string} path
 * @param {number} most
 * @param {AbortSignal} [signal]
 */
async function download(get, url, path, most, signal) {
  try {
    const answer = await get(url, { signal });
    require(answer.ok && answer.body, `the server answered ${answer.status}`);
    const reader = answer.body.getReader();
    /** @type {BlobPart[]} */
    let pieces = [];
    let blob = new Blob();
    let size = 0;
    let loose = 0;
    for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
      pieces.push(/** @type {BlobPart} */ (piece.value));
      size += piece.value.length;
      loose += piece.value.length;
      if (size > most) {
        await reader.cancel();
        break;
      }
      if (loose > 2 ** 26) {
        [blob, pieces, loose] = [new Blob([blob, ...pieces]), [], 0]; // a browser may put it on disk
      }
    }
    return new Blob([blob, ...pieces]);
  } catch (error) {
    if (signal?.aborted) throw new MtuError("aborted", "aborted", { cause: signal.reason });
    throw new MtuError("source", `${path} cannot be fetched: ${reason(error)}`, { cause: error });
  }
}
