// Arithmetic of tensors as the contract rounds it.

/** @typedef {import("./types.js").Tensor} Tensor */

const f32 = Math.fround;

/** @param {number[]} shape */
export function countOf(shape) {
  return shape.reduce((product, extent) => product * extent, 1);
}

/**
 * @param {number[]} shape
 * @param {number} value
 * @returns {Tensor}
 */
export function filled(shape, value) {
  return { shape, data: new Float32Array(countOf(shape)).fill(value) };
}

/**
 * One float32 product, the number rounded first.
 * @param {Tensor} tensor
 * @param {number} by
 * @returns {Tensor}
 */
export function scaled(tensor, by) {
  const factor = f32(by);
  return { shape: tensor.shape, data: Float32Array.from(tensor.data, (value) => value * factor) };
}

/**
 * One float32 quotient, the number rounded first.
 * @param {Tensor} tensor
 * @param {number} by
 * @returns {Tensor}
 */
export function divided(tensor, by) {
  const divisor = f32(by);
  return { shape: tensor.shape, data: Float32Array.from(tensor.data, (value) => value / divisor) };
}

/**
 * The sum of products, formed in float64 in this order and rounded once.
 * @param {[number, Tensor][]} terms
 * @returns {Tensor}
 */
export function weightedSum(terms) {
  const { shape } = terms[0][1];
  const sums = new Float64Array(countOf(shape));
  for (const [factor, { data }] of terms) {
    for (let i = 0; i < sums.length; i += 1) sums[i] += factor * data[i];
  }
  return { shape, data: Float32Array.from(sums) };
}

/**
 * @param {Tensor[]} tensors
 * @param {number} axis
 * @returns {Tensor}
 */
export function concatenated(tensors, axis) {
  const first = tensors[0];
  if (tensors.length === 1) return first;
  const extent = tensors.reduce((sum, tensor) => sum + tensor.shape[axis], 0);
  const shape = first.shape.map((each, index) => (index === axis ? extent : each));
  const data = first.data instanceof Int32Array
    ? new Int32Array(countOf(shape)) : new Float32Array(countOf(shape));
  let at = 0;
  for (let outer = 0; outer < countOf(shape.slice(0, axis)); outer += 1) {
    for (const tensor of tensors) {
      const length = countOf(tensor.shape.slice(axis));
      data.set(tensor.data.subarray(outer * length, (outer + 1) * length), at);
      at += length;
    }
  }
  return { shape, data };
}

/**
 * One entry of the first axis, [1, ...].
 * @param {Tensor} tensor
 * @param {number} index
 * @returns {Tensor}
 */
export function entryOf(tensor, index) {
  const shape = [1, ...tensor.shape.slice(1)];
  const length = countOf(shape);
  return { shape, data: tensor.data.subarray(index * length, (index + 1) * length) };
}

/** @param {Tensor} tensor */
export function isFinite(tensor) {
  return tensor.data.every(Number.isFinite);
}

/**
 * 20·log10(max|reference| / rmse) in dB: Infinity of equal tensors, -Infinity of another shape and
 * of what is not finite.
 * @param {Tensor} reference
 * @param {Tensor} actual
 */
export function psnr(reference, actual) {
  const alike = reference.shape.length === actual.shape.length
    && reference.shape.every((extent, i) => extent === actual.shape[i]);
  if (!alike || !isFinite(actual)) return -Infinity;
  let peak = 0;
  let sum = 0;
  reference.data.forEach((value, i) => {
    peak = Math.max(peak, Math.abs(value));
    sum += (value - actual.data[i]) ** 2;
  });
  const rmse = Math.sqrt(sum / reference.data.length);
  if (rmse === 0) return Infinity;
  return peak > 0 ? 20 * Math.log10(peak / rmse) : -Infinity;
}
