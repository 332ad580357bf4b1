// What the page shows. Names of bundles are data: they become text, never markup.

const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU" };
const EQUAL_DB = 999;

const byId = (id) => document.getElementById(id);

/** An element with attributes and children, of which strings are text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function showPlan(plan) {
  document.title = `${plan.name}: mtu-export bench`;
  byId("title").textContent = plan.name;
  const size = `${plan.width} × ${plan.height} pixels, ${bytes(plan.bytes)}`;
  byId("subtitle").textContent = `task ${plan.task}, ${size}`;
}

export function showState(state, detail, done) {
  const title = byId("state");
  if (title.textContent !== state) title.textContent = state;
  byId("detail").textContent = detail;
  byId("bar").value = done;
}

export function showBrowser(browser) {
  const rows = [
    ["Secure context", browser.secure_context ? "yes" : "no: one thread, no WebGPU"],
    ["Threads", browser.isolated ? "allowed" : "not allowed: the page is not isolated"],
    ["Cores", browser.cores ?? "not told"],
    ["Memory", browser.device_memory ? `${browser.device_memory} GiB, as the browser tells` : "not told"],
    ["Browser", browser.user_agent],
  ];
  byId("browser").replaceChildren(
    ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  byId("browser-card").hidden = false;
}

/** The card of a provider, empty. */
export function addProvider(provider) {
  const id = `provider-${provider}`;
  const title = make("h2", { id }, NAMES[provider]);
  const badge = make("span", { class: "badge" }, "running");
  const body = make("div", {});
  const pictures = make("div", {});
  const card = make("section", { class: "card", "aria-labelledby": id },
    make("div", { class: "heading" }, title, badge), body, pictures);
  byId("results").append(card);
  return { provider, title, badge, body, pictures };
}

export function showProvider(card, result) {
  const [text, kind] = badgeOf(result);
  card.badge.textContent = text;
  card.badge.className = `badge ${kind}`;
  card.body.replaceChildren();
  const notes = [];
  if (result.threads) notes.push(result.threads === 1 ? "one thread" : `${result.threads} threads`);
  if (result.engine) notes.push(`${result.engine.name} ${result.engine.version}`);
  if (result.adapter) notes.push(result.adapter);
  if (/swiftshader/i.test(result.adapter ?? "")) notes.push("in software: no measure of speed");
  if (notes.length) card.body.append(make("p", { class: "note" }, notes.join(", ")));
  if (result.reason) card.body.append(make("p", {}, result.reason));
  const parts = Object.entries(result.parts ?? {});
  if (parts.length) card.body.append(partsTable(parts, result.checks ?? []));
  if (result.checks?.length) card.body.append(checksTable(result.checks));
}

function badgeOf({ status, checks = [] }) {
  if (status === "failed") return ["failed", "bad"];
  if (status === "not run") return ["not run", ""];
  if (status === "running") return ["running", ""];
  if (checks.some((check) => check.passed === false)) return ["below its floor", "bad"];
  return checks.length ? ["passed", "good"] : ["measured", "good"];
}

function partsTable(parts, checks) {
  const rows = parts.map(([name, part]) => {
    const check = checks.find((each) => each.part === name);
    const first = part.rounds[0] ?? {};
    const samples = part.rounds.flatMap((round) => round.samples_s ?? []);
    const cells = [first.load_s, first.first_s, median(samples)].map(seconds);
    return [name, ...cells, decibels(check)];
  });
  return table("Parts", ["Part", "Load", "First", "Median", "dB"], rows);
}

function checksTable(checks) {
  const labels = { passes: "each pass and the picture", loop: "the loop, running free" };
  const rows = checks.filter((check) => check.part === "pipeline").map((check) => [
    labels[check.stage] ?? check.stage,
    check.passed === null ? "a figure" : `at least ${check.floor_db}`,
    decibels(check),
  ]);
  return rows.length ? table("Whole loop", ["Against the goldens", "Floor", "dB"], rows) : "";
}

function table(caption, head, rows) {
  const line = (cells, tag) => make("tr", {}, ...cells.map((cell, index) => {
    const isHead = tag === "th" || index === 0;
    const attributes = isHead ? { scope: tag === "th" ? "col" : "row" } : {};
    const content = index === 0 && typeof cell === "string" ? breakable(cell) : [cell];
    return make(isHead ? "th" : "td", attributes, ...content);
  }));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("thead", {}, line(head, "th")),
      make("tbody", {}, ...rows.map((row) => line(row, "td")))));
}

/** A name that may break behind each underscore. */
function breakable(name) {
  return name.split(/(?<=_)/).flatMap((piece, index) => (index ? [make("wbr"), piece] : [piece]));
}

/** The picture that was made, and how long that took. */
export function addPicture(card, { pixels, image }) {
  const { width, height, data } = pixels;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": "The picture that was made" });
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  const passes = image.passes ? `${image.passes} passes` : "the picture";
  const round = image.rounds[0];
  const again = round.seconds === null ? "the first time" : "the second time";
  const time = seconds(round.seconds ?? round.first_s);
  card.pictures.replaceChildren(make("figure", {}, canvas,
    make("figcaption", {}, `The goldens' request: ${passes} in ${time}, ${again}, without loading`)));
}

function decibels(check) {
  if (!check) return "–";
  const text = check.psnr_db >= EQUAL_DB ? "equal" : check.psnr_db.toFixed(1);
  return check.passed === false ? make("span", { class: "low" }, `${text} < ${check.floor_db}`) : text;
}

function median(samples) {
  if (!samples?.length) return null;
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 100) return `${Math.round(value)} s`;
  if (value >= 1) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms`;
}

function bytes(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(2)} GB` : `${(count / 1e6).toFixed(count < 1e7 ? 1 : 0)} MB`;
}
