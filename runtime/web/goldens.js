// Rule 10, of goldens.safetensors: each has the shape that the manifest says of it.

import { require, shown } from "./errors.js";
import { inputsOf } from "./rules.js";
import { latentShape, pictureShape, sameShape } from "./wiring.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./safetensors.js").Safetensors} Safetensors
 */

/**
 * Throws an Error for another shape, and for what is not finite.
 * @param {Manifest} manifest
 * @param {Safetensors} file
 */
export async function checkGoldens(manifest, file) {
  for (const [name, entry] of file.entries) {
    const expected = expectedShape(manifest, name.split("/"));
    if (!expected) continue;
    const isNoise = /^loop\/[^/]*\/noise$/.test(name) && (entry.shape[0] ?? 0) > 0;
    const shape = isNoise ? [1, ...entry.shape.slice(1)] : entry.shape;
    require(sameShape(shape, expected), `golden ${shown(name)} is [${entry.shape}], not [${expected}]`);
  }
  for (const name of file.entries.keys()) {
    if (expectedShape(manifest, name.split("/"))) await file.tensor(name);
  }
}

/**
 * The shape that the manifest says of a golden; null of names that it does not know.
 * @param {Manifest} manifest
 * @param {string[]} names
 * @returns {number[] | null}
 */
function expectedShape(manifest, [first = "", taskName = "", kind = "", ...rest]) {
  const name = rest.join("/");
  const task = manifest.tasks.find((each) => each.name === taskName);
  if (!task) return null;
  if (first !== "loop") {
    const part = manifest.parts.find((each) => each.name === first);
    const specs = part ? [...inputsOf(part, taskName), ...part.outputs] : [];
    return specs.find((spec) => spec.name === name)?.shape ?? null;
  }
  if (kind === "picture") return [1, 3, manifest.image.height, manifest.image.width];
  if (kind === "request") {
    const picture = task.inputs.pictures?.[name];
    return picture ? pictureShape(manifest, picture) : task.inputs.tensors?.[name]?.shape ?? null;
  }
  const ofLoop = ["noise", "outputs", "latents"].includes(kind);
  return ofLoop && manifest.latent ? latentShape(manifest) : null;
}
