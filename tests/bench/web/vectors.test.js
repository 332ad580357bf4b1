// The shared vectors of runtime/testdata: node --test tests/bench/web/vectors.test.js

import assert from "node:assert/strict";
import { test } from "node:test";

import { MtuError, openBundle, Pipeline, standardNormal, Tokenizer } from "../../../runtime/web/mtu.js";
import { fitPicture } from "../../../runtime/web/pictures.js";
import { checkFlow } from "../../../runtime/web/flow_rules.js";
import { Evaluation } from "../../../runtime/web/flow.js";
import { trajectory } from "../../../runtime/web/loop.js";
import { Noise, seedWords } from "../../../runtime/web/noise.js";
import { parseJson } from "../../../runtime/web/json.js";
import { provePart } from "../../../runtime/web/proof.js";
import { prepare } from "../../../runtime/web/request.js";
import { Safetensors } from "../../../runtime/web/safetensors.js";
import { checkWiring } from "../../../runtime/web/wiring.js";
import { bytesOf, closedForm, edited, filesOf, read, sha256 } from "./support.js";

const CLOSE = 2e-5;
const HOSTILE = read("hostile.json");
const LOOPS = plain(read("loops.json"));

/** As the module reads it: objects without a prototype. */
function plain(value) {
  return parseJson(new TextEncoder().encode(JSON.stringify(value)), "vectors");
}

async function tensorsOf(name) {
  const file = await Safetensors.open(new Blob([bytesOf(name)]), name);
  const tensors = new Map();
  for (const key of file.entries.keys()) tensors.set(key, await file.tensor(key));
  return tensors;
}

// ------------------------------------------------------------------------------------ hostile

const hasLink = (each) => each.edits.some((edit) => edit.op === "link");

test("the cases of links, which a browser has not, are left out by name", () => {
  const names = HOSTILE.filter(hasLink).map((each) => `${each.rule}: ${each.name}`);
  assert.deepEqual(names, ["1: a link", "4: a link", "4: a link in a folder"]);
});

for (const each of HOSTILE.filter((one) => !hasLink(one))) {
  test(`hostile: ${each.rule}: ${each.name}`, async () => {
    const opened = openBundle(edited(each.edits), { goldens: true });
    if (each.rule === 0) {
      const bundle = await opened;
      assert.equal(bundle.manifest.target, "onnx");
      const parts = new Set(bundle.manifest.parts.map((part) => part.name));
      const runs = bundle.manifest.tasks[0].flow.calls.every((call) => parts.has(call.part));
      const pipeline = Pipeline.open(bundle, /** @type {any} */ (null));
      if (runs) assert.equal((await pipeline).task.name, "edit");
      else await assert.rejects(pipeline, { code: "request" });
      return;
    }
    await assert.rejects(opened, (error) => {
      assert.ok(error instanceof MtuError, String(error));
      assert.deepEqual([error.code, error.rule], ["refused", each.rule], error.message);
      return true;
    });
  });
}

// -------------------------------------------------------------------------------------- loops

for (const each of LOOPS.cases) {
  test(`loops: ${each.name}`, async () => {
    const tensors = await tensorsOf("loops.safetensors");
    const constants = Object.create(null);
    for (const [key, tensor] of tensors) {
      if (key.startsWith("constants/")) constants[key.slice("constants/".length)] = tensor;
    }
    const manifest = { ...LOOPS, loop: { schedules: LOOPS.schedules } };
    const { guidance, ...asked } = each.request;
    const task = { ...each.task, guidance: guidance ?? each.task.guidance };
    checkFlow(manifest, task);
    checkWiring(manifest, task, constants);
    const request = {
      prompt: asked.prompt, negativePrompt: asked.negative_prompt, steps: asked.steps,
      strength: asked.strength, numbers: asked.numbers, pictures: {}, tensors: {},
    };
    for (const kind of ["pictures", "tensors"]) {
      for (const name of Object.keys(task.inputs[kind] ?? {})) request[kind][name] = tensors.get(`${kind}/${name}`);
    }
    const table = LOOPS.schedules.find((one) => one.steps === asked.steps && one.strength === asked.strength);
    if (task.flow.prediction) {
      const noise = tensors.get("noise");
      const count = table.passes.some((pass) => pass.noise) ? 1 + table.passes.length : 1;
      const length = noise.data.length / noise.shape[0];
      request.noise = { shape: [count, ...noise.shape.slice(1)], data: noise.data.subarray(0, count * length) };
    }
    const { fitted, noise } = prepare(manifest, task, request);
    const run = closedForm(LOOPS.parts);
    const evaluation = new Evaluation(
      manifest, task, constants, fitted, async (call, feeds) => run(call.part, feeds),
      (path, text) => tensors.get(`ids/${path}/${text}`));
    await evaluation.runOnce();
    let latent;
    if (task.flow.prediction) {
      const passes = trajectory((x, pass) => evaluation.denoise(x, pass), table, noise, evaluation.start());
      for await (latent of passes);
      assertClose(latent, tensors.get(`expected/${each.name}/latent`));
    }
    assertClose(await evaluation.picture(latent), tensors.get(`expected/${each.name}/picture`));
  });
}

function assertClose(actual, expected) {
  assert.deepEqual(actual.shape, expected.shape);
  const largest = expected.data.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  actual.data.forEach((value, i) => {
    assert.ok(Math.abs(value - expected.data[i]) <= CLOSE * largest, `${value} is not ${expected.data[i]}`);
  });
}

// --------------------------------------------------------------------------------------- fits

for (const each of read("fits.json")) {
  test(`fits: ${each.name}`, async () => {
    const expected = (await tensorsOf("fits.safetensors")).get(each.name);
    const bytes = bytesOf(each.file);
    const data = each.file.endsWith(".grey16") ? new Uint16Array(bytes.slice().buffer) : bytes;
    const raw = { width: each.file_width, height: each.file_height, data, orientation: each.orientation };
    const actual = fitPicture(raw, each.picture, each.height, each.width);
    assert.deepEqual(actual.shape, expected.shape);
    const levels = levelsOf(each.picture);
    actual.data.forEach((value, i) => {
      const distance = Math.abs(levels(value) - levels(expected.data[i]));
      assert.ok(distance <= each.levels + 1e-3, `${i}: ${distance} levels`);
    });
  });
}

function levelsOf(picture) {
  if (picture.kind === "mask" || picture.range === "0..1") return (value) => value * 255;
  return picture.range === "0..255" ? (value) => value : (value) => (value + 1) * 127.5;
}

// ------------------------------------------------------------------------------------- tokens

for (const texts of ["texts", "texts_with_added_tokens"]) {
  test(`tokens: ${texts}`, () => {
    const vectors = read("tokens.json");
    const files = filesOf("edit-onnx-int8");
    const [record] = parseJson(files.get("manifest.json"), "manifest").tokenizers;
    const document = parseJson(files.get("tokenizer/tokenizer.json"), "tokenizer.json");
    if (texts !== "texts") document.added_tokens.push(...plain(vectors.added_tokens));
    const tokenizer = new Tokenizer(document, record);
    assert.ok(vectors[texts].length > 5);
    for (const each of vectors[texts]) {
      const { ids, cut } = tokenizer.encode(each.text);
      assert.deepEqual([...ids.data], each.ids, each.text);
      assert.equal(cut, each.cut, each.text);
    }
  });
}

// -------------------------------------------------------------------------------------- noise

test("noise: seed 7 of the appendix", () => {
  assert.deepEqual(seedWords(7n), [
    2083679832, 3939563265, 4185785210, 142198000, 1732601695, 1648004171, 1614310572, 3007594413]);
  const noise = new Noise(7);
  assert.deepEqual(Array.from({ length: 6 }, () => noise.next32()), [
    4058335883, 2684764585, 2938530453, 3853503932, 2483747170, 3331544671]);
});

for (const each of read("noise.json")) {
  test(`noise: seed ${each.seed}`, () => {
    const drawn = standardNormal(BigInt(each.seed), each.count);
    assert.deepEqual([...drawn.subarray(0, each.first.length)], each.first);
    assert.equal(sha256(new Uint8Array(drawn.buffer)), each.sha256);
  });
}

// ------------------------------------------------------------- names that objects have of themselves

test("names: constructor and __proto__ are names like others", async () => {
  const number = { default: 2, minimum: 0, maximum: 3 };
  const flow = { calls: [], picture: { call: "a", name: "b" } };
  const task = plain({ name: "t", guidance: { kind: "none" }, steps: 1, inputs: { numbers: { constructor: number } }, flow });
  const { fitted } = prepare(/** @type {any} */ ({}), task, {});
  assert.equal(fitted.numbers.constructor ?? number.default, 2);
  const zeros = { shape: [1], data: new Float32Array(1) };
  const far = { shape: [1], data: new Float32Array(1).fill(9) };
  const part = plain({ name: "p", entries: { t: "e" }, inputs: [], outputs: [{ name: "__proto__", shape: [1] }] });
  part.outputs[0].name = "__proto__";
  const proof = [{ part: "p", task: "t", stage: "exported", floor_db: 50 }];
  const goldens = /** @type {any} */ ({ tensor: async () => far });
  const results = Object.create(null);
  results["__proto__"] = zeros;
  const verdict = await provePart(/** @type {any} */ ({ proof }), part, "t", goldens, async () => results);
  assert.deepEqual([verdict.passed, verdict.psnr_db], [false, 0]);
});
