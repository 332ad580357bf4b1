/**
 * What a caller can tell apart:
 * - `refused`: the bundle breaks a rule of the contract (`rule`) or is not what it says of itself
 * - `request`: the task cannot serve this request
 * - `source`: a file could not be read or fetched
 * - `runtime`: ONNX Runtime cannot load or run a part, or the bundle is of another target
 * - `not_finite`: a prediction or a picture holds NaN or Inf
 * - `aborted`: the signal ended it (`name` is "AbortError")
 * - `closed`: the pipeline was closed
 * @typedef {"refused"|"request"|"source"|"runtime"|"not_finite"|"aborted"|"closed"} Code
 */

/** The one error of this module, with a code and, of a bundle that is refused, the rule. */
export class MtuError extends Error {
  /**
   * @param {Code} code
   * @param {string} message
   * @param {{ rule?: number, cause?: unknown }} [more]
   */
  constructor(code, message, more = {}) {
    super(message, { cause: more.cause });
    this.name = code === "aborted" ? "AbortError" : "MtuError";
    /** @type {Code} */
    this.code = code;
    /** @type {number | undefined} */
    this.rule = more.rule;
  }
}

/**
 * @param {unknown} condition
 * @param {string} message
 * @returns {asserts condition}
 */
export function require(condition, message) {
  if (!condition) throw new Error(message);
}

/**
 * @param {unknown} condition
 * @param {string} message
 * @returns {asserts condition}
 */
export function requireRequest(condition, message) {
  if (!condition) throw new MtuError("request", message);
}

/**
 * What `check` returns; any other error than a MtuError becomes a refusal by this rule.
 * @template T
 * @param {number | undefined} rule
 * @param {() => T | Promise<T>} check
 * @returns {Promise<T>}
 */
export async function underRule(rule, check) {
  try {
    return await check();
  } catch (error) {
    if (error instanceof MtuError) throw error;
    throw new MtuError("refused", reason(error), { rule, cause: error });
  }
}

/** @param {unknown} error */
export function reason(error) {
  const text = error instanceof Error ? error.message : String(error);
  return (text.split("\n").find((line) => line.trim()) ?? "no reason given").slice(0, 300);
}

/**
 * A name of somebody else's file in one printable piece of at most 80 characters.
 * @param {unknown} value
 */
export function shown(value) {
  const text = JSON.stringify(value) ?? String(value);
  const plain = text.replace(/[^\x20-\x7e]/g, "?");
  return plain.length > 80 ? `${plain.slice(0, 76)} ...` : plain;
}
