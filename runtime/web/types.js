/**
 * The types of the module: the manifest as its schema says, and what a request and its results are.
 *
 * @typedef {{ shape: number[], data: Float32Array | Int32Array }} Tensor Row-major.
 * @typedef {Record<string, Tensor>} Tensors
 * @typedef {{ name: string, shape: number[], dtype: "float32" | "int32" }} Spec
 *
 * @typedef {object} Source
 * @property {"latent"|"column"|"constant"|"tokens"|"picture"|"tensor"|"number"|"output"|"guided"} kind
 * @property {string} [name]
 * @property {string} [tokenizer]
 * @property {string} [call]
 * @property {string | null} [outside]
 * @property {number | null} [every]
 * @property {number | null} [mean]
 * @property {number | null} [multiply]
 * @property {number | null} [divide]
 * @property {"prompt" | "image" | null} [only]
 *
 * @typedef {{ sources: Source[], axis?: number | null, empty?: string | null }} Value
 * @typedef {"once" | "pass" | "guided" | "end"} When
 * @typedef {{ id: string, part: string, when: When, inputs: Record<string, Value> }} Call
 * @typedef {{ call: string, name: string }} OutputName
 *
 * @typedef {object} Flow
 * @property {Call[]} calls
 * @property {Source | null} [start]
 * @property {OutputName | null} [prediction]
 * @property {OutputName | null} [refined]
 * @property {OutputName} picture
 *
 * @typedef {{ kind: "none" | "text" | "text_image", text?: number, image?: number }} Guidance
 *
 * @typedef {object} PictureInput
 * @property {"picture" | "grey" | "mask"} kind
 * @property {"lanczos" | "nearest"} [filter]
 * @property {"-1..1" | "0..1" | "0..255"} [range]
 *
 * @typedef {object} Inputs
 * @property {Record<string, PictureInput>} [pictures]
 * @property {Record<string, { shape: number[] }>} [tensors]
 * @property {Record<string, { default: number, minimum: number, maximum: number }>} [numbers]
 *
 * @typedef {object} Task
 * @property {string} name
 * @property {Guidance} guidance
 * @property {number} steps
 * @property {number | null} [strength]
 * @property {string | null} [prompt]
 * @property {Inputs} inputs
 * @property {Flow} flow
 *
 * @typedef {{ path: string, bytes: number, sha256: string }} FileRecord
 *
 * @typedef {object} PartFields
 * @property {string} name
 * @property {string[]} [data]
 * @property {Record<string, string>} entries
 * @property {Spec[]} inputs
 * @property {Spec[]} outputs
 * @property {Record<string, Spec[]>} [task_inputs]
 * @property {{ task_weight_bytes?: Record<string, number> }} cost
 * @property {Record<string, number[]>} [witness]
 * @typedef {FileRecord & PartFields} Part
 *
 * @typedef {object} Pass
 * @property {Record<string, number | number[]>} columns
 * @property {number} input_scale
 * @property {number[]} x
 * @property {number[]} m
 * @property {number} noise
 *
 * @typedef {object} Schedule
 * @property {number} steps
 * @property {number | null} [strength]
 * @property {{ noise: number, picture: number }} start
 * @property {Pass[]} passes
 *
 * @typedef {object} ProofEntry
 * @property {string} part
 * @property {string} task
 * @property {string} stage
 * @property {number | null} psnr_db
 * @property {number} floor_db
 * @property {boolean | null} passed
 *
 * @typedef {{ path: string, bos: number, eos: number, pad: number, length: number }} TokenizerRecord
 *
 * @typedef {object} Golden
 * @property {string} prompt
 * @property {string | null} [negative_prompt]
 * @property {number | null} [steps]
 * @property {number | null} [strength]
 *
 * @typedef {object} Manifest
 * @property {string} schema_version
 * @property {string} name
 * @property {string} target
 * @property {{ height: number, width: number }} image
 * @property {{ channels: number, factor: number } | null} [latent]
 * @property {Task[]} tasks
 * @property {Part[]} parts
 * @property {TokenizerRecord[]} tokenizers
 * @property {FileRecord[]} [files]
 * @property {{ schedules: Schedule[] } | null} [loop]
 * @property {Golden | null} [golden]
 * @property {ProofEntry[]} proof
 *
 * @typedef {object} RawPicture Straight alpha, row by row: 4 bytes a pixel, or 16-bit grey.
 * @property {number} width
 * @property {number} height
 * @property {Uint8Array | Uint8ClampedArray | Uint16Array} data
 * @property {number} [orientation] That of EXIF, 1 to 8; 1 where it is missing.
 *
 * @typedef {object} Request
 * @property {string | null} [prompt]
 * @property {string | null} [negativePrompt]
 * @property {number} [steps] The task's where it is missing, and so the strength and the guidance.
 * @property {number | null} [strength]
 * @property {Record<string, RawPicture | Tensor>} [pictures] Raw, or fitted: a tensor of the size.
 * @property {Record<string, Tensor>} [tensors]
 * @property {Record<string, number>} [numbers]
 * @property {{ text?: number, image?: number }} [guidance] Takes the place of the task's scales.
 * @property {number | bigint} [seed] Noise as `mtu-export run --seed` draws; 0 where it is missing.
 * @property {Tensor} [noise] Instead of the seed's.
 *
 * @typedef {object} Event
 * @property {"loading" | "loaded" | "called" | "pass" | "checked"} kind
 * @property {string} [part] Of "loading", "loaded", "called" and "checked".
 * @property {number} [seconds] Of "loaded" and "called".
 * @property {When} [when] Of "called".
 * @property {number} [number] Of "pass", from 1.
 * @property {number} [of] Of "pass".
 * @property {Tensor} [latent] Of "pass": x after it, for a preview.
 * @typedef {(event: Event) => void} OnEvent
 *
 * @typedef {(feeds: Tensors) => Promise<Tensors>} Run
 * @typedef {{ run: Run, close: () => Promise<void> }} Session
 *
 * @typedef {object} Verdict
 * @property {string} part
 * @property {string} task
 * @property {string} stage
 * @property {number} psnr_db Infinity of equal tensors, -Infinity of what is not finite.
 * @property {number} floor_db
 * @property {boolean | null} passed null of the stage `loop`, which is a figure.
 * @property {Record<string, number>} outputs Of the worst case, by output.
 */

export {};
