// The noise of a seed: numpy's `default_rng(seed).standard_normal(count, dtype=float32)`, by the
// appendix of runtime/README.md.

const M64 = (1n << 64n) - 1n;
const M128 = (1n << 128n) - 1n;
const MULTIPLIER = (0x2360ed051fc65da4n << 64n) | 0x4385df649fccf645n;
const R = 3.654152885361009;
const AREA = 0.004928673233974655;
const SCALE = 8388608;
const f32 = Math.fround;

/**
 * The eight words of a seed.
 * @param {bigint} seed
 */
export function seedWords(seed) {
  /** @type {number[]} */
  const entropy = [];
  for (let rest = seed; rest > 0n; rest >>= 32n) entropy.push(Number(rest & 0xffffffffn));
  let a = 0x43b0d7e5;
  /** @param {number} value */
  const hash = (value) => {
    const mixed = value ^ a;
    a = Math.imul(a, 0x931e8875);
    const product = Math.imul(mixed, a);
    return product ^ (product >>> 16);
  };
  /**
   * @param {number} x
   * @param {number} y
   */
  const mix = (x, y) => {
    const value = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return value ^ (value >>> 16);
  };
  const pool = [0, 1, 2, 3].map((i) => hash(entropy[i] ?? 0));
  for (let s = 0; s < 4; s += 1) {
    for (let t = 0; t < 4; t += 1) if (s !== t) pool[t] = mix(pool[t], hash(pool[s]));
  }
  for (const word of entropy.slice(4)) {
    for (let t = 0; t < 4; t += 1) pool[t] = mix(pool[t], hash(word));
  }
  let b = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => {
    const mixed = pool[i % 4] ^ b;
    b = Math.imul(b, 0x58f38ded);
    const product = Math.imul(mixed, b);
    return (product ^ (product >>> 16)) >>> 0;
  });
}

/** The layers of the ziggurat. */
function makeTables() {
  const y = new Float64Array(256);
  const e = new Float64Array(256);
  const k = new Uint32Array(256);
  y[0] = 1;
  y[255] = Math.exp(-0.5 * R * R);
  e[255] = R;
  e[0] = AREA / y[255];
  k[0] = Math.round(((R * y[255]) / AREA) * SCALE);
  for (let i = 254; i >= 1; i -= 1) {
    e[i] = Math.sqrt(-2 * Math.log(AREA / e[i + 1] + y[i + 1]));
    k[i + 1] = Math.round((e[i] / e[i + 1]) * SCALE);
    y[i] = Math.exp(-0.5 * e[i] * e[i]);
  }
  return { k, w: Float32Array.from(e, (each) => each / SCALE), f: Float32Array.from(y) };
}

const { k: K, w: W, f: F } = makeTables();

/** PCG64, 32 bits at a time, and the normal numbers drawn of it. */
export class Noise {
  /** @param {number | bigint} seed A whole number of at least 0. */
  constructor(seed) {
    const number = BigInt(seed);
    if (number < 0n) throw new RangeError("a seed is a whole number of at least 0");
    const words = seedWords(number).map(BigInt);
    const [w0, w1, w2, w3] = [0, 2, 4, 6].map((i) => words[i] | (words[i + 1] << 32n));
    this.increment = ((((w2 << 64n) | w3) << 1n) | 1n) & M128;
    this.state = (this.increment + ((w0 << 64n) | w1)) & M128;
    this.state = (this.state * MULTIPLIER + this.increment) & M128;
    /** @type {number | null} */
    this.upper = null;
  }

  next32() {
    if (this.upper !== null) {
      const upper = this.upper;
      this.upper = null;
      return upper;
    }
    this.state = (this.state * MULTIPLIER + this.increment) & M128;
    const folded = (this.state >> 64n) ^ (this.state & M64);
    const turn = this.state >> 122n;
    const number = ((folded >> turn) | (folded << (64n - turn))) & M64;
    this.upper = Number(number >> 32n);
    return Number(number & 0xffffffffn);
  }

  uniform() {
    return (this.next32() >>> 8) * 2 ** -24;
  }

  log1p() {
    return -f32(Math.log1p(-this.uniform()));
  }

  /** One standard normal number. */
  normal() {
    for (;;) {
      const n = this.next32();
      const i = n & 255;
      const d = n >>> 9;
      const size = f32(d * W[i]);
      const x = (n >>> 8) & 1 ? -size : size;
      if (d < K[i]) return x;
      if (i === 0) return this.tail(d);
      const height = f32(f32(f32(F[i - 1] - F[i]) * this.uniform()) + F[i]);
      if (height < Math.exp(-0.5 * x * x)) return x;
    }
  }

  /** @param {number} d */
  tail(d) {
    const inverse = f32(1 / R);
    for (;;) {
      const a = f32(inverse * this.log1p());
      const b = this.log1p();
      if (f32(b + b) > f32(a * a)) return (d >>> 8) & 1 ? -f32(f32(R) + a) : f32(f32(R) + a);
    }
  }
}

/**
 * The first draws of a seed.
 * @param {number | bigint} seed
 * @param {number} count
 */
export function standardNormal(seed, count) {
  const noise = new Noise(seed);
  return Float32Array.from({ length: count }, () => noise.normal());
}
