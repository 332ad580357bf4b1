// A worker of one provider and round: out of memory ends it, and not the page.

import { measureProvider } from "./measure.js";

self.onmessage = async ({ data: { plan, provider, round, files } }) => {
  const result = { provider, status: "measured", reason: null, parts: {}, checks: [] };
  const post = (kind, content, transfer = []) => self.postMessage({ kind, ...content }, transfer);
  try {
    await measureProvider(plan, round, result, files, post);
  } catch (error) {
    result.status = "failed";
    result.reason = reasonOf(error);
  }
  post("result", { result });
  post("end", {});
};

function reasonOf(error) {
  const code = error?.code ? `${error.code}: ` : "";
  const rule = error?.rule ? ` (rule ${error.rule})` : "";
  const line = String(error?.message ?? error).split("\n").find((each) => each.trim());
  return `${code}${line ?? "no reason given"}${rule}`.slice(0, 900);
}
