// The bundle of runtime/testdata makes the expected picture in ONNX Runtime Web, whose folder is
// named by ORT_WEB: ORT_WEB=DIR node --test tests/bench/web/picture.test.js

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";

import { MtuError, openBundle, Pipeline, psnr } from "../../../runtime/web/mtu.js";
import { Safetensors } from "../../../runtime/web/safetensors.js";
import { bytesOf, filesOf, pngLevels, read } from "./support.js";

const FLOOR_DB = 60;
const REQUEST = read("request.json");
const ENTRY = `${process.env.ORT_WEB}/dist/ort.node.min.mjs`;
const ort = await import(pathToFileURL(ENTRY).href);
ort.env.wasm.numThreads = 1;

let bundle;
let pipeline;
let tensors;
before(async () => {
  bundle = await openBundle(filesOf(REQUEST.bundle));
  pipeline = await Pipeline.open(bundle, ort);
  tensors = await Safetensors.open(new Blob([bytesOf(REQUEST.tensors)]), REQUEST.tensors);
});
after(() => pipeline.close());

async function request() {
  return {
    prompt: REQUEST.prompt,
    steps: REQUEST.steps,
    seed: REQUEST.seed,
    pictures: { image: await tensors.tensor("image") },
  };
}

/** 20·log10(255 / rmse) of the 8-bit pictures. */
function levelsDb({ width, height, data }, expected) {
  assert.deepEqual([width, height], [expected.width, expected.height]);
  const rgb = data.filter((_, i) => i % 4 !== 3);
  const squares = rgb.reduce((sum, value, i) => sum + (value - expected.levels[i]) ** 2, 0);
  return 20 * Math.log10(255 / Math.sqrt(squares / rgb.length));
}

test("the picture is the expected one", async () => {
  const events = [];
  const result = await pipeline.generate(await request(), { onEvent: (event) => events.push(event) });
  const db = levelsDb(result.pixels, pngLevels(REQUEST.picture));
  console.log(`# ${db.toFixed(1)} dB of 8 bits, ${psnr(await tensors.tensor("picture"), result.picture).toFixed(1)} dB of floats`);
  assert.ok(db >= FLOOR_DB, `${db} dB`);
  const passes = events.filter((event) => event.kind === "pass");
  assert.deepEqual(passes.map(({ number, of }) => [number, of]), [1, 2, 3, 4, 5].map((n) => [n, 5]));
  for (const [i, { latent }] of passes.entries()) {
    assert.ok(psnr(await tensors.tensor(`latents/${i}`), latent) >= FLOOR_DB);
  }
  const loaded = events.filter((event) => event.kind === "loaded").map((event) => event.part);
  assert.deepEqual(loaded, ["text_encoder", "vae_encoder", "unet", "vae_decoder"]);
});

test("another seed makes another picture", async () => {
  const [one, other] = [await request(), { ...await request(), seed: 8 }];
  const results = [await pipeline.generate(one), await pipeline.generate(other)];
  assert.ok(psnr(results[0].picture, results[1].picture) < 30);
});

test("the goldens are reached", async () => {
  const verdicts = await pipeline.verify();
  const table = verdicts.map(({ part, stage, psnr_db, passed }) => [part, stage, Number(psnr_db.toFixed(1)), passed]);
  console.log(`# ${JSON.stringify(table)}`);
  assert.deepEqual(verdicts.map(({ part, stage, passed }) => `${part} ${stage} ${passed}`), [
    "text_encoder quantised true", "vae_encoder exported true", "unet quantised true",
    "vae_decoder exported true", "pipeline passes true", "pipeline loop null"]);
  for (const verdict of verdicts) {
    const recorded = bundle.manifest.proof.find((each) => each.part === verdict.part && each.stage === verdict.stage);
    assert.ok(Math.abs(verdict.psnr_db - recorded.psnr_db) < 2, `${verdict.part}: ${verdict.psnr_db} dB`);
  }
});

test("a request that the task cannot serve is refused", async () => {
  const whole = await request();
  const changes = [
    { prompt: null }, { steps: 3 }, { strength: 0.5 }, { pictures: {} }, { seed: -1 }, { seed: 0.5 },
    { numbers: { amount: 1 } }, { tensors: { hint: whole.pictures.image } }, { prompt: "\ud800" },
    { pictures: { image: { width: 2, height: 2, data: new Uint8Array(15) } } },
    { pictures: { image: { shape: [1, 3, 32, 47], data: new Float32Array(3 * 32 * 47) } } },
    { pictures: { image: { shape: [1, 3, 32, 48], data: new Float32Array(3 * 32 * 48).fill(NaN) } } },
    { noise: { shape: [1, 4, 4, 5], data: new Float32Array(80) } }, { guidance: { text: Infinity } },
  ];
  for (const change of changes) {
    await assert.rejects(pipeline.generate({ ...whole, ...change }), (error) => {
      assert.ok(error instanceof MtuError && error.code === "request", `${JSON.stringify(change)}: ${error}`);
      return true;
    });
  }
});

test("a signal ends it between two calls", async () => {
  const controller = new AbortController();
  const whole = await request();
  const calls = [];
  const onEvent = (event) => {
    if (event.kind === "called") calls.push(event.part);
    if (calls.length === 3) controller.abort();
  };
  await assert.rejects(pipeline.generate(whole, { onEvent, signal: controller.signal }), { name: "AbortError", code: "aborted" });
  assert.equal(calls.length, 3);
  await assert.rejects(pipeline.generate(whole, { signal: AbortSignal.abort() }), { code: "aborted" });
});

test("a picture of raw pixels, a file of no graph, a closed pipeline", async () => {
  const whole = await request();
  const gray = { width: 5, height: 3, data: new Uint8Array(60).fill(127) };
  const { picture } = await pipeline.generate({ ...whole, pictures: { image: gray } });
  assert.deepEqual(picture.shape, [1, 3, 32, 48]);
  const other = await Pipeline.open(bundle, ort, { keep: true });
  const both = [other.generate(whole), other.generate(whole)];
  const [one, two] = await Promise.all(both);
  assert.deepEqual(one.picture, two.picture);
  await other.close();
  await assert.rejects(other.generate(whole), { code: "closed" });
  const broken = { ...ort, InferenceSession: { create: () => Promise.reject(new Error("no such operator")) } };
  const failing = await Pipeline.open(bundle, broken);
  await assert.rejects(failing.generate(whole), { code: "runtime", message: /text_encoder.*no such operator/ });
});

test("a folder of a web server, and what a server may do", async () => {
  const files = filesOf(REQUEST.bundle);
  const paths = [...files.keys()];
  const base = "https://example.org/a folder/b";
  const asked = [];
  const server = (changed = new Map()) => async (url) => {
    const path = decodeURIComponent(url.pathname.slice("/a%20folder/b/".length));
    asked.push(path);
    const data = changed.get(path) ?? files.get(path);
    return data === undefined ? new Response(null, { status: 404 }) : new Response(data);
  };
  const opened = await openBundle({ base, paths, fetch: server() }, { goldens: false });
  assert.equal(asked.filter((path) => path === "unet/model.onnx").length, 1);
  assert.ok(!asked.includes("goldens.safetensors"));
  assert.ok(!asked.some((path) => path.startsWith("scheduler/")));
  await opened.goldens();
  assert.equal(asked.filter((path) => path === "goldens.safetensors").length, 1);
  const endless = new ReadableStream({ pull: (controller) => controller.enqueue(new Uint8Array(65_536)) });
  const unet = files.get("unet/model.onnx");
  for (const [changed, expected] of [
    [new Map([["unet/model.onnx", new Uint8Array(unet.length)]]), { code: "refused", rule: 6 }],
    [new Map([["unet/model.onnx", endless]]), { code: "refused", rule: 6 }],
    [new Map([["manifest.json", new ReadableStream({ pull: (c) => c.error(new Error("cut")) })]]), { code: "source" }],
  ]) {
    await assert.rejects(openBundle({ base, paths, fetch: server(changed) }), expected);
  }
  await assert.rejects(openBundle({ base, paths: [...paths, "unet/more.onnx"], fetch: server() }), { code: "source" });
  await assert.rejects(openBundle({ base, paths: [...paths, "unet/../x"], fetch: server() }), { code: "refused", rule: 4 });
  await assert.rejects(openBundle({ base, paths: paths.filter((path) => path !== "unet/model.onnx"), fetch: server() }), { rule: 8 });
  const signal = AbortSignal.abort();
  await assert.rejects(openBundle(files, { signal }), { code: "aborted" });
  await assert.rejects(openBundle(files, { manifestSha256: "0".repeat(64) }), { code: "refused", rule: 1 });
});

test("a request beyond memory is an error of this module", async () => {
  const huge = { ...ort, Tensor: class { constructor() { throw new RangeError("Array buffer allocation failed"); } } };
  const failing = await Pipeline.open(bundle, huge);
  await assert.rejects(failing.generate(await request()), { code: "runtime", message: /memory/ });
  await failing.close();
});
