// One task of a bundle in ONNX Runtime: pictures of requests, and the check against the goldens.

import { MtuError, reason, require, underRule } from "./errors.js";
import { Evaluation } from "./flow.js";
import { parseJson } from "./json.js";
import { trajectory } from "./loop.js";
import { toPixels } from "./pictures.js";
import { proveLoop, provePart, provenTasks } from "./proof.js";
import { prepare } from "./request.js";
import { openPart } from "./runtime.js";
import { isFinite } from "./tensors.js";
import { Tokenizer } from "./tokenizer.js";
import { missingParts, partOf } from "./wiring.js";

/**
 * @typedef {import("./bundle.js").Bundle} Bundle
 * @typedef {import("./runtime.js").Ort} Ort
 * @typedef {import("./types.js").Call} Call
 * @typedef {import("./types.js").Tensor} Tensor
 * @typedef {import("./types.js").Tensors} Tensors
 * @typedef {import("./types.js").Request} Request
 * @typedef {import("./types.js").Session} Session
 * @typedef {import("./types.js").OnEvent} OnEvent
 * @typedef {import("./types.js").Verdict} Verdict
 * @typedef {import("./flow.js").Fitted} Fitted
 *
 * @typedef {object} PipelineOptions
 * @property {string} [task] The only one where it is missing.
 * @property {string[]} [executionProviders] Of ONNX Runtime; `["wasm"]` where it is missing.
 * @property {boolean} [keep] Whether parts stay loaded: faster pictures, more memory.
 * @property {Record<string, unknown>} [sessionOptions] Further options of ONNX Runtime's sessions.
 *
 * @typedef {object} CallOptions
 * @property {OnEvent} [onEvent]
 * @property {AbortSignal} [signal] Ends it between two calls of parts: none can be interrupted.
 *
 * @typedef {object} Result
 * @property {{ width: number, height: number, data: Uint8ClampedArray<ArrayBuffer> }} pixels RGBA.
 * @property {Tensor} picture [1, 3, H, W] in -1..1, not clipped.
 * @property {Tensor | null} latent The last x; null without a loop.
 */

const MOST_TOKENIZER_BYTES = 32_000_000;

export class Pipeline {
  /**
   * @param {Bundle} bundle
   * @param {Ort} ort
   * @param {PipelineOptions} options
   * @param {Map<string, Tokenizer>} tokenizers
   */
  constructor(bundle, ort, options, tokenizers) {
    this.bundle = bundle;
    this.manifest = bundle.manifest;
    this.task = bundle.task(options.task);
    this.ort = ort;
    this.options = options;
    this.tokenizers = tokenizers;
    /** @type {Map<string, Session>} */
    this.sessions = new Map();
    /** @type {Promise<unknown>} */
    this.queue = Promise.resolve();
    this.closed = false;
  }

  /**
   * Loads tokenizers, but no part. Throws MtuError.
   * @param {Bundle} bundle
   * @param {Ort} ort The module `onnxruntime-web`.
   * @param {PipelineOptions} [options]
   */
  static async open(bundle, ort, options = {}) {
    const { manifest } = bundle;
    const task = bundle.task(options.task);
    if (manifest.target !== "onnx") {
      throw new MtuError("runtime", `a bundle for ${manifest.target} does not run in a browser`);
    }
    const missing = missingParts(manifest, task);
    if (missing.length) throw new MtuError("request", `task ${task.name} needs ${missing}, which the bundle lacks`);
    const sources = task.flow.calls.flatMap((call) => Object.values(call.inputs).flatMap((value) => value.sources));
    const paths = new Set(sources.map((source) => source.tokenizer));
    /** @type {Map<string, Tokenizer>} */
    const tokenizers = new Map();
    for (const record of manifest.tokenizers.filter((each) => paths.has(each.path))) {
      tokenizers.set(record.path, await readTokenizer(bundle, record));
    }
    return new Pipeline(bundle, ort, options, tokenizers);
  }

  /**
   * What of a prompt no encoder reads; "" where it fits.
   * @param {string} prompt
   */
  cut(prompt) {
    const cuts = [...this.tokenizers.values()].map((tokenizer) => tokenizer.encode(prompt).cut);
    return cuts.reduce((longest, cut) => (cut.length > longest.length ? cut : longest), "");
  }

  /**
   * The picture of a request. One runs at a time; others wait their turn.
   * @param {Request} request
   * @param {CallOptions} [options]
   * @returns {Promise<Result>}
   */
  generate(request, options = {}) {
    return this.alone(options, async () => {
      const { fitted, table, noise } = prepare(this.manifest, this.task, request);
      const evaluation = this.evaluation(fitted, options);
      await evaluation.runOnce();
      /** @type {Tensor | undefined} */
      let latent;
      if (table && noise) {
        let number = 0;
        const passes = trajectory((x, pass) => evaluation.denoise(x, pass), table, noise, evaluation.start());
        for await (latent of passes) {
          number += 1;
          options.onEvent?.({ kind: "pass", number, of: table.passes.length, latent });
        }
      }
      const picture = await evaluation.picture(latent);
      if (!isFinite(picture)) throw new MtuError("not_finite", "the picture holds NaN or Inf");
      return { pixels: toPixels(picture), picture, latent: latent ?? null };
    });
  }

  /**
   * The check of "Check on first start": every part of the task and its loop against the goldens.
   * Verdicts of another task stand for an entry that this one shares.
   * @param {CallOptions & { parts?: boolean, loop?: boolean }} [options]
   * @returns {Promise<Verdict[]>}
   */
  verify(options = {}) {
    return this.alone(options, async () => {
      const goldens = await this.bundle.goldens();
      if (!goldens) throw new MtuError("request", "the bundle has no goldens");
      /** @type {Verdict[]} */
      const verdicts = [];
      const parts = new Set(this.task.flow.calls.map((call) => partOf(this.manifest, call)));
      for (const part of options.parts === false ? [] : parts) {
        const task = provenTasks(part).get(this.task.name) ?? this.task.name;
        const session = await this.session(part.name, options, task);
        verdicts.push(await provePart(this.manifest, part, task, goldens, (feeds) => this.checked(options, () => session.run(feeds))));
        options.onEvent?.({ kind: "checked", part: part.name });
      }
      if (options.loop !== false) {
        const run = (/** @type {Fitted} */ fitted) => this.evaluation(fitted, options);
        verdicts.push(...await proveLoop(this.manifest, this.task, goldens, run));
      }
      return verdicts;
    });
  }

  /** Waits for what runs and lets go of all parts; later calls throw MtuError `closed`. */
  async close() {
    this.closed = true;
    await this.queue;
    await this.release([]);
  }

  // ------------------------------------------------------------------------------- sessions

  /**
   * @template T
   * @param {CallOptions} options
   * @param {() => Promise<T>} work
   * @returns {Promise<T>}
   */
  alone(options, work) {
    const turn = this.queue.then(() => this.checked(options, work)).finally(async () => {
      if (!this.options.keep) await this.release([]);
    });
    this.queue = turn.catch(() => {});
    return turn;
  }

  /**
   * @template T
   * @param {CallOptions} options
   * @param {() => Promise<T>} work
   */
  async checked({ signal }, work) {
    if (this.closed) throw new MtuError("closed", "the pipeline is closed");
    if (signal?.aborted) throw new MtuError("aborted", "aborted", { cause: signal.reason });
    try {
      return await work();
    } catch (error) {
      if (error instanceof MtuError || !(error instanceof RangeError)) throw error;
      throw new MtuError("runtime", `not enough memory: ${reason(error)}`, { cause: error });
    }
  }

  /**
   * @param {Fitted} fitted
   * @param {CallOptions} options
   */
  evaluation(fitted, options) {
    /** @type {(path: string, text: string) => Tensor} */
    const tokenize = (path, text) => /** @type {Tokenizer} */ (this.tokenizers.get(path)).encode(text).ids;
    /** @type {(call: Call, feeds: Tensors) => Promise<Tensors>} */
    const run = (call, feeds) => this.checked(options, () => this.run(call, feeds, options));
    return new Evaluation(this.manifest, this.task, this.bundle.constants, fitted, run, tokenize);
  }

  /**
   * @param {Call} call
   * @param {Tensors} feeds
   * @param {CallOptions} options
   */
  async run(call, feeds, options) {
    const session = await this.session(call.part, options);
    const start = performance.now();
    const outputs = await session.run(feeds);
    const seconds = (performance.now() - start) / 1000;
    options.onEvent?.({ kind: "called", part: call.part, when: call.when, seconds });
    return outputs;
  }

  /**
   * The session of a part; others are let go, but those of a pass are loaded together.
   * @param {string} name
   * @param {CallOptions} options
   * @param {string} [task] Whose entry is loaded.
   */
  async session(name, { onEvent }, task = this.task.name) {
    const part = this.manifest.parts.find((each) => each.name === name);
    require(part, `no part ${name}`);
    const key = `${name} ${part.entries[task]}`;
    const opened = this.sessions.get(key);
    if (opened) return opened;
    if (!this.options.keep) await this.release(this.together(name));
    onEvent?.({ kind: "loading", part: name });
    const start = performance.now();
    const options = { executionProviders: this.options.executionProviders ?? ["wasm"], ...this.options.sessionOptions };
    const session = await openPart(this.ort, this.bundle, part, task, options);
    this.sessions.set(key, session);
    onEvent?.({ kind: "loaded", part: name, seconds: (performance.now() - start) / 1000 });
    return session;
  }

  /**
   * Parts that stay loaded beside one.
   * @param {string} name
   */
  together(name) {
    const inLoop = this.task.flow.calls.filter((call) => call.when === "pass" || call.when === "guided");
    const names = inLoop.map((call) => call.part);
    return names.includes(name) ? names : [];
  }

  /**
   * Lets go of all parts but these.
   * @param {string[]} kept
   */
  async release(kept) {
    for (const [key, session] of [...this.sessions]) {
      if (kept.includes(key.slice(0, key.indexOf(" ")))) continue;
      this.sessions.delete(key);
      await session.close();
    }
  }
}

/**
 * @param {Bundle} bundle
 * @param {import("./types.js").TokenizerRecord} record
 */
async function readTokenizer(bundle, record) {
  return underRule(undefined, async () => {
    const path = `${record.path}/tokenizer.json`;
    require(bundle.files.has(path), `${path} is missing`);
    const blob = bundle.files.blob(path);
    require(blob.size <= MOST_TOKENIZER_BYTES, `${path} has more than ${MOST_TOKENIZER_BYTES} bytes`);
    return new Tokenizer(parseJson(new Uint8Array(await blob.arrayBuffer()), path), record);
  });
}
