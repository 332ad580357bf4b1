// Pictures from raw pixels to tensors: I1 to I7 of runtime/README.md, and the way back.

import { MtuError, requireRequest } from "./errors.js";

/**
 * @typedef {import("./types.js").RawPicture} RawPicture
 * @typedef {import("./types.js").PictureInput} PictureInput
 * @typedef {import("./types.js").Tensor} Tensor
 * @typedef {{ width: number, height: number, channels: number, data: Uint8Array }} Levels
 */

const MOST_PIXELS = 100_000_000;

/**
 * A picture at the size of a bundle, float32 [1, 3, H, W], or [1, 1, H, W] of grey and masks.
 * @param {RawPicture} picture
 * @param {PictureInput} input
 * @param {number} height
 * @param {number} width
 * @returns {Tensor}
 */
export function fitPicture(picture, input, height, width) {
  const upright = turned(onWhite(picture), picture.orientation ?? 1);
  if (input.kind === "mask") {
    const grey = nearest(greyOf(upright), height, width);
    return { shape: [1, 1, height, width], data: Float32Array.from(grey.data, (v) => (v >= 128 ? 1 : 0)) };
  }
  const fit = input.filter === "nearest" ? nearest : lanczos;
  const fitted = fit(upright, height, width);
  const { channels, data } = input.kind === "grey" ? greyOf(fitted) : fitted;
  const scaled = scaling(input.range ?? "-1..1");
  const count = height * width;
  const values = new Float32Array(channels * count);
  for (let channel = 0; channel < channels; channel += 1) {
    for (let i = 0; i < count; i += 1) values[channel * count + i] = scaled(data[i * channels + channel]);
  }
  return { shape: [1, channels, height, width], data: values };
}

/**
 * I6: a level of 255 as float32, each operation rounded.
 * @param {string} range
 * @returns {(level: number) => number}
 */
function scaling(range) {
  if (range === "-1..1") return (level) => Math.fround(level / 127.5) - 1;
  return range === "0..1" ? (level) => level / 255 : (level) => level;
}

/**
 * I1, I3 and I4: 8-bit RGB on white.
 * @param {RawPicture} picture
 * @returns {Levels}
 */
function onWhite({ width, height, data }) {
  const count = width * height;
  const whole = Number.isSafeInteger(width) && Number.isSafeInteger(height) && width > 0 && height > 0;
  requireRequest(whole && count <= MOST_PIXELS, `a picture has 1 to ${MOST_PIXELS} pixels`);
  const isDeep = data instanceof Uint16Array;
  requireRequest(data.length === count * (isDeep ? 1 : 4), `a picture of ${width} x ${height} has ${data.length} numbers`);
  const rgb = new Uint8Array(3 * count);
  for (let i = 0; i < count; i += 1) {
    const alpha = isDeep ? 255 : data[4 * i + 3];
    for (let channel = 0; channel < 3; channel += 1) {
      const level = isDeep ? halfToEven(data[i] / 257) : data[4 * i + channel];
      // floor((v·a + 255·(255 − a)) / 255 + 0.5), in whole numbers
      const sum = level * alpha + 255 * (255 - alpha);
      rgb[3 * i + channel] = Math.floor((2 * sum + 255) / 510);
    }
  }
  return { width, height, channels: 3, data: rgb };
}

/**
 * I2: upright, as its EXIF orientation says.
 * @param {Levels} levels
 * @param {number} orientation
 * @returns {Levels}
 */
function turned(levels, orientation) {
  requireRequest([1, 2, 3, 4, 5, 6, 7, 8].includes(orientation), "an orientation is 1 to 8");
  if (orientation === 1) return levels;
  const { channels } = levels;
  const swapped = orientation >= 5;
  const [width, height] = swapped ? [levels.height, levels.width] : [levels.width, levels.height];
  const fromRight = [2, 3, 7, 8].includes(orientation);
  const fromBelow = [3, 4, 6, 7].includes(orientation);
  const data = new Uint8Array(levels.data.length);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const [across, down] = swapped ? [y, x] : [x, y];
      const column = fromRight ? levels.width - 1 - across : across;
      const line = fromBelow ? levels.height - 1 - down : down;
      const from = channels * (line * levels.width + column);
      data.set(levels.data.subarray(from, from + channels), channels * (y * width + x));
    }
  }
  return { width, height, channels, data };
}

/**
 * @param {Levels} rgb
 * @returns {Levels}
 */
function greyOf({ width, height, data }) {
  const grey = new Uint8Array(width * height);
  for (let i = 0; i < grey.length; i += 1) {
    const sum = 19595 * data[3 * i] + 38470 * data[3 * i + 1] + 7471 * data[3 * i + 2];
    grey[i] = (sum + 32768) >> 16;
  }
  return { width, height, channels: 1, data: grey };
}

/**
 * I7's rectangle and pixels, in whole numbers.
 * @param {Levels} levels
 * @param {number} height
 * @param {number} width
 * @returns {Levels}
 */
function nearest(levels, height, width) {
  const { channels, width: iw, height: ih } = levels;
  const [p, q] = iw * height <= ih * width ? [iw, width] : [ih, height];
  /**
   * @param {number} side
   * @param {number} count
   */
  const places = (side, count) => Array.from({ length: count }, (_, i) =>
    Math.floor((side * q - count * p + (2 * i + 1) * p) / (2 * q)));
  const columns = places(iw, width);
  const data = new Uint8Array(height * width * channels);
  let at = 0;
  for (const line of places(ih, height)) {
    for (const column of columns) {
      const from = channels * (line * iw + column);
      data.set(levels.data.subarray(from, from + channels), at);
      at += channels;
    }
  }
  return { width, height, channels, data };
}

/**
 * I5: Lanczos, one axis after the other.
 * @param {Levels} levels
 * @param {number} height
 * @param {number} width
 * @returns {Levels}
 */
function lanczos(levels, height, width) {
  const { width: iw, height: ih } = levels;
  const scale = Math.min(iw / width, ih / height);
  const across = weights(iw, width, (iw - width * scale) / 2, scale);
  const down = weights(ih, height, (ih - height * scale) / 2, scale);
  const columnsFirst = ih - height > 2 * Math.max(0, iw - width);
  if (columnsFirst) return resampledRows(resampledColumns(levels, down), across);
  return resampledColumns(resampledRows(levels, across), down);
}

/**
 * @typedef {{ first: number, values: Float64Array }} Weights
 * @param {number} side
 * @param {number} count
 * @param {number} begin
 * @param {number} scale
 * @returns {Weights[]}
 */
function weights(side, count, begin, scale) {
  const support = Math.max(1, scale);
  return Array.from({ length: count }, (_, i) => {
    const centre = begin + (i + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 3 * support - 0.5));
    const last = Math.min(side - 1, Math.ceil(centre + 3 * support));
    const values = new Float64Array(last - first + 1);
    let sum = 0;
    for (let j = first; j <= last; j += 1) {
      values[j - first] = kernel((j + 0.5 - centre) / support);
      sum += values[j - first];
    }
    return { first, values: values.map((value) => value / sum) };
  });
}

/** @param {number} t */
function kernel(t) {
  return Math.abs(t) < 3 ? sinc(t) * sinc(t / 3) : 0;
}

/** @param {number} t */
function sinc(t) {
  return t === 0 ? 1 : Math.sin(Math.PI * t) / (Math.PI * t);
}

/**
 * @param {Levels} levels
 * @param {Weights[]} across
 * @returns {Levels}
 */
function resampledRows({ width: iw, height, channels, data }, across) {
  const width = across.length;
  const result = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y += 1) {
    across.forEach(({ first, values }, x) => {
      for (let channel = 0; channel < channels; channel += 1) {
        let sum = 0;
        let from = channels * (y * iw + first) + channel;
        for (let j = 0; j < values.length; j += 1, from += channels) sum += values[j] * data[from];
        result[channels * (y * width + x) + channel] = toLevel(sum);
      }
    });
  }
  return { width, height, channels, data: result };
}

/**
 * @param {Levels} levels
 * @param {Weights[]} down
 * @returns {Levels}
 */
function resampledColumns({ width, channels, data }, down) {
  const height = down.length;
  const length = width * channels;
  const result = new Uint8Array(length * height);
  const sums = new Float64Array(length);
  down.forEach(({ first, values }, y) => {
    sums.fill(0);
    values.forEach((value, j) => {
      const from = (first + j) * length;
      for (let i = 0; i < length; i += 1) sums[i] += value * data[from + i];
    });
    for (let i = 0; i < length; i += 1) result[y * length + i] = toLevel(sums[i]);
  });
  return { width, height, channels, data: result };
}

/** @param {number} value */
function toLevel(value) {
  return Math.min(255, Math.max(0, Math.floor(value + 0.5)));
}

/** @param {number} value */
function halfToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 ? below + 1 : below;
}

/**
 * The 8-bit picture of [1, 3, H, W] in -1..1, opaque; `new ImageData(data, width)` shows it.
 * @param {Tensor} picture
 * @returns {{ width: number, height: number, data: Uint8ClampedArray<ArrayBuffer> }}
 */
export function toPixels(picture) {
  const [, , height, width] = /** @type {[number, number, number, number]} */ (picture.shape);
  const count = height * width;
  const data = new Uint8ClampedArray(4 * count);
  for (let i = 0; i < count; i += 1) {
    for (let channel = 0; channel < 3; channel += 1) {
      const value = Math.min(1, Math.max(-1, picture.data[channel * count + i]));
      data[4 * i + channel] = halfToEven((value + 1) * 127.5);
    }
    data[4 * i + 3] = 255;
  }
  return { width, height, data };
}

/**
 * The pixels of a picture file, decoded by the browser: turned upright by its EXIF orientation, no
 * colour profile applied, on white. A canvas premultiplies alpha, so that half transparent pixels
 * may be one level off.
 * @param {Blob} file
 * @returns {Promise<RawPicture>}
 */
export async function decodePicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch (error) {
    throw new MtuError("request", "the browser cannot decode this picture", { cause: error });
  }
  const { width, height } = bitmap;
  requireRequest(width * height <= MOST_PIXELS, `a picture has 1 to ${MOST_PIXELS} pixels`);
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { width, height, data: context.getImageData(0, 0, width, height).data };
}
