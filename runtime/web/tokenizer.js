// CLIP's tokenizer from a bundle's tokenizer.json: "Text" of runtime/README.md.

import { require, requireRequest, shown } from "./errors.js";
import { isObject } from "./json.js";
import { aligned, cutAt, normalised } from "./text.js";

/** @typedef {import("./text.js").Aligned} Aligned */
/** @typedef {import("./types.js").TokenizerRecord} TokenizerRecord */
/**
 * @typedef {object} AddedToken
 * @property {number} id
 * @property {string} content
 * @property {boolean} single_word
 * @property {boolean} lstrip
 * @property {boolean} rstrip
 * @property {boolean} normalized
 */
/** @typedef {{ id: number, begin: number }} Placed An id and where it begins in the raw text. */

const WORD = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^ \p{L}\p{N}]+/gu;
const CAPITALS = /^<\|(startoftext|endoftext)\|>$/;
const WORD_CHARACTER = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE = /\p{White_Space}/u;
const HALF = /\p{Cs}/u;
const LETTERS = bytesAsLetters();
const ENCODER = new TextEncoder();
const MOST_TOKENS = 1_000_000;
const FLAGS = ["single_word", "lstrip", "rstrip", "normalized", "special"];

/** What of tokenizer.json does not vary. */
const CANONICAL = {
  version: "1.0",
  truncation: { direction: "Right", strategy: "LongestFirst", stride: 0 },
  padding: { direction: "Right", pad_to_multiple_of: null, pad_type_id: 0 },
  normalizer: {
    type: "Sequence",
    normalizers: [
      { type: "NFC" },
      { type: "Replace", pattern: { Regex: "\\s+" }, content: " " },
      { type: "Lowercase" },
    ],
  },
  pre_tokenizer: {
    type: "Sequence",
    pretokenizers: [
      {
        type: "Split",
        pattern: {
          Regex: "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+",
        },
        behavior: "Removed",
        invert: true,
      },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    ],
  },
  post_processor: { type: "RobertaProcessing", trim_offsets: false, add_prefix_space: false },
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    type: "BPE",
    dropout: null,
    continuing_subword_prefix: "",
    end_of_word_suffix: "</w>",
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: false,
  },
};
/** What of tokenizer.json varies, beside the length. */
const VARYING = ["added_tokens", "sep", "cls", "pad_id", "pad_token", "vocab", "merges", "unk_token"];

export class Tokenizer {
  /**
   * Throws an Error for a file that is not canonical, or not what the manifest says of it.
   * @param {unknown} document tokenizer.json
   * @param {TokenizerRecord} record
   */
  constructor(document, record) {
    const what = `${record.path}/tokenizer.json`;
    const { added, vocab, merges } = checked(document, record, what);
    this.record = record;
    this.vocab = vocab;
    /** @type {Map<string, number>} */
    this.ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.rounds = [false, true].map((flag) => roundOf(added.filter((token) => token.normalized === flag)));
    this.expansions = expansionsOf(added);
  }

  /**
   * The ids [1, length], and what of the text is cut off ("" where it fits).
   * @param {string} text
   */
  encode(text) {
    requireRequest(!HALF.test(text), "the text holds half a surrogate pair");
    /** @type {Placed[]} */
    const placed = [];
    for (const { id, begin } of this.ids(text)) {
      for (const each of this.expansions.get(id) ?? [id]) placed.push({ id: each, begin });
    }
    const { bos, eos, pad, length } = this.record;
    const kept = placed.slice(0, length - 2).map((each) => each.id);
    const data = new Int32Array(length).fill(pad);
    data.set([bos, ...kept, eos]);
    const first = placed[length - 2];
    return { ids: { shape: [1, length], data }, cut: first ? text.slice(first.begin) : "" };
  }

  /**
   * @param {string} text
   * @returns {Generator<Placed>}
   */
  *ids(text) {
    for (const outer of split(aligned(text), this.rounds[0])) {
      if (outer.id !== undefined) yield { id: outer.id, begin: outer.begin };
      if (!outer.piece) continue;
      for (const inner of split(normalised(outer.piece), this.rounds[1])) {
        if (inner.id !== undefined) yield { id: inner.id, begin: inner.begin };
        if (inner.piece) yield* this.words(inner.piece);
      }
    }
  }

  /**
   * Steps 3 to 5 of a piece.
   * @param {Aligned} piece
   * @returns {Generator<Placed>}
   */
  *words(piece) {
    for (const match of piece.text.matchAll(WORD)) {
      const word = match[0];
      const lengths = CAPITALS.test(word) ? [2, word.length - 4, 2] : [word.length];
      let at = match.index;
      for (const length of lengths) {
        yield* this.merged(cutAt(piece, at, at + length));
        at += length;
      }
    }
  }

  /**
   * The ids of one word.
   * @param {Aligned} word
   * @returns {Generator<Placed>}
   */
  *merged(word) {
    /** @type {{ token: string, begin: number }[]} */
    const tokens = [];
    for (let at = 0; at < word.text.length;) {
      const letter = String.fromCodePoint(/** @type {number} */ (word.text.codePointAt(at)));
      for (const byte of ENCODER.encode(letter)) tokens.push({ token: LETTERS[byte], begin: word.begins[at] });
      at += letter.length;
    }
    tokens[tokens.length - 1].token += "</w>";
    for (;;) {
      let best = -1;
      let least = Infinity;
      for (let i = 0; i + 1 < tokens.length; i += 1) {
        const rank = this.ranks.get(`${tokens[i].token} ${tokens[i + 1].token}`) ?? Infinity;
        if (rank < least) [best, least] = [i, rank];
      }
      if (best < 0) break;
      tokens[best].token += tokens[best + 1].token;
      tokens.splice(best + 1, 1);
    }
    for (const { token, begin } of tokens) yield { id: this.vocab[token], begin };
  }
}

/**
 * @typedef {{ pattern: RegExp, tokens: Map<string, AddedToken> } | null} Round
 * @param {AddedToken[]} added
 * @returns {Round}
 */
function roundOf(added) {
  /** @type {Map<string, AddedToken>} */
  const tokens = new Map();
  for (const token of added) {
    const content = token.normalized ? normalised(aligned(token.content)).text : token.content;
    if (content && !tokens.has(content)) tokens.set(content, token);
  }
  if (!tokens.size) return null;
  const longest = [...tokens.keys()].sort((one, other) => [...other].length - [...one].length);
  const escaped = longest.map((content) => content.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
  return { pattern: new RegExp(escaped.join("|"), "gu"), tokens };
}

/**
 * The added tokens of a round, and the pieces between them, in order.
 * @param {Aligned} whole
 * @param {Round} round
 * @returns {Generator<{ id?: number, begin: number, piece?: Aligned }>}
 */
function* split(whole, round) {
  const { text } = whole;
  let done = 0;
  for (const match of round ? text.matchAll(round.pattern) : []) {
    const token = /** @type {AddedToken} */ (round?.tokens.get(match[0]));
    let begin = match.index;
    let end = begin + match[0].length;
    if (token.single_word && isTouched(text, begin, end)) continue;
    while (token.lstrip && begin > done && SPACE.test(text[begin - 1])) begin -= 1;
    while (token.rstrip && end < text.length && SPACE.test(text[end])) end += 1;
    if (begin > done) yield { begin: whole.begins[done], piece: cutAt(whole, done, begin) };
    yield { id: token.id, begin: whole.begins[begin] };
    done = end;
  }
  if (done < text.length) yield { begin: whole.begins[done], piece: cutAt(whole, done, text.length) };
}

/**
 * @param {string} text
 * @param {number} begin
 * @param {number} end
 */
function isTouched(text, begin, end) {
  const before = [...text.slice(Math.max(0, begin - 2), begin)].at(-1) ?? "";
  return WORD_CHARACTER.test(before) || WORD_CHARACTER.test(text.slice(end, end + 2));
}

/**
 * Added tokens that stand for several: T, T_1, T_2, ...
 * @param {AddedToken[]} added
 */
function expansionsOf(added) {
  const ids = new Map(added.map((token) => [token.content, token.id]));
  /** @type {Map<number, number[]>} */
  const expansions = new Map();
  for (const [content, id] of ids) {
    const all = [id];
    for (let next = ids.get(`${content}_1`); next !== undefined; next = ids.get(`${content}_${all.length}`)) {
      all.push(next);
    }
    if (all.length > 1) expansions.set(id, all);
  }
  return expansions;
}

/** A printable letter for every byte. */
function bytesAsLetters() {
  /** @type {string[]} */
  const letters = [];
  let next = 256;
  for (let byte = 0; byte < 256; byte += 1) {
    const prints = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    letters.push(String.fromCharCode(prints ? byte : next));
    if (!prints) next += 1;
  }
  return letters;
}

/**
 * @param {any} document
 * @param {TokenizerRecord} record
 * @param {string} what
 */
function checked(document, record, what) {
  requireCanonical(document, CANONICAL, what);
  const { truncation, padding, post_processor: post, model, added_tokens: added } = document;
  const { vocab, merges } = model;
  require(truncation.max_length === record.length && padding.strategy?.Fixed === record.length
    && Object.keys(padding.strategy).length === 1, `${what}: its length is not ${record.length}`);
  require(isObject(vocab) && Array.isArray(merges) && Array.isArray(added), `${what}: no vocabulary`);
  const count = Math.max(Object.keys(vocab).length + added.length, merges.length);
  require(count <= MOST_TOKENS, `${what}: more than ${MOST_TOKENS} tokens`);
  const ids = idsOf(vocab, added, what);
  const named = { bos: post.cls, eos: post.sep, pad: [padding.pad_token, padding.pad_id] };
  for (const [name, pair] of Object.entries(named)) {
    const [token, id] = Array.isArray(pair) ? pair : [];
    const expected = record[/** @type {"bos"} */ (name)];
    require(typeof token === "string" && ids.get(token) === id && id === expected, `${what}: ${name} is not ${expected}`);
  }
  for (const pair of merges) {
    const isPair = Array.isArray(pair) && pair.length === 2 && pair.every((each) => typeof each === "string");
    require(isPair, `${what}: a merge is not a pair of tokens`);
    for (const token of [...pair, pair.join("")]) {
      require(token in vocab, `${what}: merges name ${shown(token)}, which is no token`);
    }
  }
  return {
    added: /** @type {AddedToken[]} */ (added),
    vocab: /** @type {Record<string, number>} */ (vocab),
    merges: /** @type {[string, string][]} */ (merges),
  };
}

/**
 * @param {Record<string, unknown>} vocab
 * @param {any[]} added
 * @param {string} what
 */
function idsOf(vocab, added, what) {
  /** @type {Map<string, unknown>} */
  const ids = new Map(Object.entries(vocab));
  for (const token of added) {
    const whole = isObject(token) && Object.keys(token).length === FLAGS.length + 2
      && FLAGS.every((flag) => typeof token[flag] === "boolean") && typeof token.content === "string";
    require(whole, `${what}: an added token is damaged`);
    const content = /** @type {string} */ (token.content);
    require(!ids.has(content) || ids.get(content) === token.id, `${what}: ${shown(content)} has two ids`);
    ids.set(content, token.id);
  }
  const seen = new Set();
  for (const [token, id] of ids) {
    require(token !== "" && token.length <= 2000, `${what}: ${shown(token)} is no token`);
    const legal = typeof id === "number" && Number.isInteger(id) && id >= 0 && id < 2 ** 31;
    require(legal && !seen.has(id), `${what}: ${shown(token)} has id ${shown(id)}`);
    seen.add(id);
  }
  for (const letter of LETTERS) {
    require(letter in vocab && `${letter}</w>` in vocab, `${what}: not every text has ids`);
  }
  return ids;
}

/**
 * @param {unknown} value
 * @param {unknown} canonical
 * @param {string} what
 */
function requireCanonical(value, canonical, what) {
  if (Array.isArray(canonical)) {
    require(Array.isArray(value) && value.length === canonical.length, `${what} is not canonical`);
    canonical.forEach((each, index) => requireCanonical(value[index], each, what));
  } else if (isObject(canonical)) {
    require(isObject(value), `${what} is not canonical`);
    for (const [key, each] of Object.entries(canonical)) {
      require(key in value, `${what}: ${key} is missing`);
      requireCanonical(value[key], each, what);
    }
    const more = Object.keys(value).filter((key) => !Object.hasOwn(canonical, key));
    const varying = [...VARYING, "max_length", "strategy"];
    for (const key of more) require(varying.includes(key), `${what}: unknown key ${shown(key)}`);
  } else {
    require(value === canonical, `${what}: ${shown(value)} is not canonical`);
  }
}
