// JSON as rule 1 of the contract wants it. `JSON.parse` takes a key twice, 1e999 and half a
// surrogate pair, and `__proto__` is no ordinary key in a plain object.

import { require, shown } from "./errors.js";

const DEEPEST = 64;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const PLAIN = /[^"\\\u0000-\u001f]*/y;
const HEX = /[0-9a-fA-F]{4}/y;
const HALF = /\p{Cs}/u;
/** @type {Record<string, string>} */
const ESCAPES = {
  '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t",
};
/** @type {[string, unknown][]} */
const WORDS = [["true", true], ["false", false], ["null", null]];

/**
 * The JSON value of UTF-8 bytes; objects have no prototype. Throws an Error with the place.
 * @param {Uint8Array} bytes
 * @param {string} what
 * @returns {unknown}
 */
export function parseJson(bytes, what) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Error(`${what} is not UTF-8`);
  }
  return new Parser(text, what).document();
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

class Parser {
  /**
   * @param {string} text
   * @param {string} what
   */
  constructor(text, what) {
    this.text = text;
    this.what = what;
    this.at = 0;
  }

  document() {
    const value = this.value(1);
    this.space();
    require(this.at === this.text.length, `${this.what}: more than one value`);
    return value;
  }

  /** @param {RegExp} sticky */
  take(sticky) {
    sticky.lastIndex = this.at;
    const match = sticky.exec(this.text);
    if (match) this.at = sticky.lastIndex;
    return match ? match[0] : null;
  }

  space() {
    this.take(SPACE);
  }

  /** @param {string} letter */
  skips(letter) {
    this.space();
    if (this.text[this.at] !== letter) return false;
    this.at += 1;
    return true;
  }

  /**
   * @param {number} depth
   * @returns {unknown}
   */
  value(depth) {
    this.space();
    const first = this.text[this.at];
    if (first === "{" || first === "[") {
      require(depth <= DEEPEST, `${this.what}: more than ${DEEPEST} objects and lists inside one another`);
      this.at += 1;
      return first === "{" ? this.object(depth) : this.list(depth);
    }
    if (first === '"') return this.string();
    for (const [word, value] of WORDS) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    const number = this.take(NUMBER);
    require(number !== null, `${this.what}: no JSON at character ${this.at}`);
    const value = Number(number);
    require(Number.isFinite(value), `${this.what}: ${shown(number)} is not finite`);
    return value;
  }

  /** @param {number} depth */
  object(depth) {
    /** @type {Record<string, unknown>} */
    const object = Object.create(null);
    if (this.skips("}")) return object;
    do {
      this.space();
      require(this.text[this.at] === '"', `${this.what}: no key at character ${this.at}`);
      const key = this.string();
      require(!(key in object), `${this.what}: key ${shown(key)} is there twice`);
      require(this.skips(":"), `${this.what}: no colon at character ${this.at}`);
      object[key] = this.value(depth + 1);
    } while (this.skips(","));
    require(this.skips("}"), `${this.what}: an object without an end at character ${this.at}`);
    return object;
  }

  /** @param {number} depth */
  list(depth) {
    /** @type {unknown[]} */
    const list = [];
    if (this.skips("]")) return list;
    do list.push(this.value(depth + 1));
    while (this.skips(","));
    require(this.skips("]"), `${this.what}: a list without an end at character ${this.at}`);
    return list;
  }

  string() {
    this.at += 1;
    let string = "";
    for (;;) {
      string += this.take(PLAIN);
      const letter = this.text[this.at];
      require(letter === '"' || letter === "\\", `${this.what}: a string without an end`);
      this.at += 1;
      if (letter === '"') break;
      string += this.escape();
    }
    require(!HALF.test(string), `${this.what}: half a surrogate pair in ${shown(string)}`);
    return string;
  }

  escape() {
    const letter = this.text[this.at];
    this.at += 1;
    if (letter === "u") {
      const code = this.take(HEX);
      require(code !== null, `${this.what}: an escape without four digits`);
      return String.fromCharCode(parseInt(code, 16));
    }
    require(letter !== undefined && Object.hasOwn(ESCAPES, letter), `${this.what}: no such escape`);
    return /** @type {string} */ (ESCAPES[letter]);
  }
}
