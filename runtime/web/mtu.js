/**
 * Bundles of mtu-export in web apps: `openBundle` reads and checks one, `Pipeline` makes pictures
 * with it. The contract is runtime/README.md; ONNX Runtime is handed in by the caller.
 * @module
 */

export { Bundle, openBundle } from "./bundle.js";
export { MtuError } from "./errors.js";
export { standardNormal } from "./noise.js";
export { decodePicture, fitPicture, toPixels } from "./pictures.js";
export { Pipeline } from "./pipeline.js";
export { goldenRequest } from "./proof.js";
export { psnr } from "./tensors.js";
export { Tokenizer } from "./tokenizer.js";
