// What the page keeps in its tab: node --test tests/bench/web/resume.test.js

import assert from "node:assert/strict";
import { test } from "node:test";

import { forget, interrupted, keep } from "../../../mtu_export/bench/web/resume.js";

function tab() {
  const items = new Map();
  return {
    getItem: (key) => items.get(key) ?? null,
    setItem: (key, value) => items.set(key, value),
    removeItem: (key) => items.delete(key),
  };
}

const done = { provider: "wasm", status: "measured", reason: null };

test("a page that begins has no results", () => {
  assert.deepEqual(interrupted(tab()), []);
});

test("what ran when the page ended has failed, what had ended stays", () => {
  const storage = tab();
  keep(storage, [done], { provider: "webgpu", status: "running", parts: { unet: {} } }, "webgpu: unet: loading");
  const results = interrupted(storage);
  assert.deepEqual(results[0], done);
  assert.deepEqual([results[1].provider, results[1].status], ["webgpu", "failed"]);
  assert.deepEqual(results[1].parts, { unet: {} });
  assert.match(results[1].reason, /memory.*unet: loading/);
});

test("between two providers nothing has failed", () => {
  const storage = tab();
  keep(storage, [done], null, "");
  assert.deepEqual(interrupted(storage), [done]);
  forget(storage);
  assert.deepEqual(interrupted(storage), []);
});

test("a storage that is full, forbidden or damaged is as none", () => {
  const full = { ...tab(), setItem: () => { throw new Error("full"); } };
  keep(full, [done], null, "");
  assert.deepEqual(interrupted(full), []);
  keep(null, [done], null, "");
  forget(null);
  assert.deepEqual(interrupted(null), []);
  const damaged = tab();
  damaged.getItem = () => "{";
  assert.deepEqual(interrupted(damaged), []);
});
