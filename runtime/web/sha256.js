// SHA-256 of a Blob. Web Crypto has it, in secure contexts alone and for whole buffers; elsewhere,
// and for large files, it is computed here, piece by piece.

const LARGEST_BUFFER = 2 ** 28;
const PRIMES = firstPrimes(64);
const K = Int32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = PRIMES.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));

/**
 * The hash in small hexadecimal letters.
 * @param {Blob} blob
 */
export async function sha256(blob) {
  if (globalThis.crypto?.subtle && blob.size <= LARGEST_BUFFER) {
    return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer())));
  }
  const hash = new Sha256();
  for (let at = 0; at < blob.size; at += LARGEST_BUFFER / 16) {
    hash.update(new Uint8Array(await blob.slice(at, at + LARGEST_BUFFER / 16).arrayBuffer()));
  }
  return hash.digest();
}

/** The hash of bytes that come in pieces. */
export class Sha256 {
  constructor() {
    this.state = Int32Array.from(START);
    this.words = new Int32Array(64);
    this.block = new Uint8Array(64);
    this.filled = 0;
    this.length = 0;
  }

  /** @param {Uint8Array} bytes */
  update(bytes) {
    this.length += bytes.length;
    let at = 0;
    while (at < bytes.length) {
      const count = Math.min(64 - this.filled, bytes.length - at);
      this.block.set(bytes.subarray(at, at + count), this.filled);
      this.filled += count;
      at += count;
      if (this.filled === 64) this.compress();
    }
    return this;
  }

  digest() {
    const bits = BigInt(this.length) * 8n;
    const end = new Uint8Array(((119 - this.filled) % 64) + 1 + 8);
    end[0] = 0x80;
    new DataView(end.buffer).setBigUint64(end.length - 8, bits);
    this.update(end);
    const bytes = new Uint8Array(32);
    const view = new DataView(bytes.buffer);
    this.state.forEach((word, index) => view.setInt32(4 * index, word));
    return hex(bytes);
  }

  compress() {
    const { words: w, state, block } = this;
    for (let i = 0; i < 16; i += 1) {
      const at = 4 * i;
      w[i] = (block[at] << 24) | (block[at + 1] << 16) | (block[at + 2] << 8) | block[at + 3];
    }
    for (let i = 16; i < 64; i += 1) {
      const early = w[i - 15];
      const late = w[i - 2];
      const s0 = turned(early, 7) ^ turned(early, 18) ^ (early >>> 3);
      const s1 = turned(late, 17) ^ turned(late, 19) ^ (late >>> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    let a = state[0], b = state[1], c = state[2], d = state[3];
    let e = state[4], f = state[5], g = state[6], h = state[7];
    for (let i = 0; i < 64; i += 1) {
      const s1 = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25);
      const one = (h + s1 + ((e & f) ^ (~e & g)) + K[i] + w[i]) | 0;
      const s0 = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22);
      const two = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      h = g;
      g = f;
      f = e;
      e = (d + one) | 0;
      d = c;
      c = b;
      b = a;
      a = (one + two) | 0;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
    state[5] += f;
    state[6] += g;
    state[7] += h;
    this.filled = 0;
  }
}

/**
 * @param {number} word
 * @param {number} count
 */
function turned(word, count) {
  return (word >>> count) | (word << (32 - count));
}

/** @param {number} count */
function firstPrimes(count) {
  /** @type {number[]} */
  const primes = [];
  for (let n = 2; primes.length < count; n += 1) {
    if (primes.every((prime) => n % prime)) primes.push(n);
  }
  return primes;
}

/**
 * The first 32 bits of what follows the point.
 * @param {number} value
 */
function fraction(value) {
  return Math.floor((value % 1) * 2 ** 32) | 0;
}

/** @param {Uint8Array} bytes */
function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
