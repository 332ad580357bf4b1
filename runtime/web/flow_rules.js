// Rule 11: the flow of a task is in order and complete.

import { require, shown } from "./errors.js";

/**
 * @typedef {import("./types.js").Manifest} Manifest
 * @typedef {import("./types.js").Task} Task
 * @typedef {import("./types.js").Call} Call
 * @typedef {import("./types.js").Source} Source
 * @typedef {import("./types.js").Value} Value
 * @typedef {import("./types.js").OutputName} OutputName
 * @typedef {import("./types.js").When} When
 */

/** @type {When[]} */
const STAGES = ["once", "pass", "guided", "end"];
/** @type {Partial<Record<Source["kind"], When[]>>} */
const LEGAL = {
  latent: ["pass", "guided", "end"],
  column: ["pass", "guided"],
  tokens: ["once"],
  guided: ["guided"],
};

/**
 * The output of a call, by its part; undefined where the part was not exported.
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {OutputName} output
 */
export function outputSpec(manifest, task, output) {
  const call = callOf(task, output.call);
  const part = manifest.parts.find((each) => each.name === call.part);
  const spec = part?.outputs.find((each) => each.name === output.name);
  require(spec || !part, `${call.part} has no output ${shown(output.name)}`);
  return spec;
}

/**
 * @param {Task} task
 * @param {string} id
 * @returns {Call}
 */
export function callOf(task, id) {
  const call = task.flow.calls.find((each) => each.id === id);
  require(call, `${task.name}: no call ${shown(id)}`);
  return call;
}

/**
 * A source's output.
 * @param {Source} source
 * @returns {OutputName}
 */
export function outputOf(source) {
  return { call: source.call ?? "", name: source.name ?? "" };
}

/**
 * Ids of the once calls whose outputs depend on the prompt.
 * @param {Task} task
 */
export function promptedCalls(task) {
  /** @type {Set<string>} */
  const prompted = new Set();
  for (const call of task.flow.calls) {
    if (call.when !== "once") continue;
    const sources = Object.values(call.inputs).flatMap((value) => value.sources);
    const depends = sources.some(
      (source) => source.kind === "tokens"
        || (source.kind === "output" && prompted.has(source.call ?? "")),
    );
    if (depends) prompted.add(call.id);
  }
  return prompted;
}

/**
 * @param {Manifest} manifest
 * @param {Task} task
 */
export function checkFlow(manifest, task) {
  const { flow } = task;
  /** @type {Map<string, Call>} */
  const before = new Map();
  let stage = 0;
  for (const call of flow.calls) {
    const where = `task ${task.name}: call ${call.id}`;
    require(STAGES.indexOf(call.when) >= stage, `${where} is out of order`);
    stage = STAGES.indexOf(call.when);
    const part = manifest.parts.find((each) => each.name === call.part);
    if (part) checkInputNames(call, part.inputs.map((input) => input.name), where);
    for (const [name, value] of Object.entries(call.inputs)) {
      const place = `${where}: input ${shown(name)}`;
      require((value.sources.length > 1) === isSet(value.axis), `${place}: axis belongs to several sources`);
      require(!isSet(value.empty) || call.when === "pass", `${place}: empty is for calls in a pass`);
      for (const source of value.sources) {
        checkSource(manifest, task, source, call.when, before, place);
        if (part && source.kind === "tokens") checkTokenizer(manifest, source, place);
      }
    }
    before.set(call.id, call);
  }
  for (const [name, number] of Object.entries(task.inputs.numbers ?? {})) {
    const inside = number.minimum <= number.default && number.default <= number.maximum;
    require(inside, `task ${task.name}: number ${name}: default is not minimum to maximum`);
  }
  checkResults(manifest, task, before);
}

/**
 * @param {Call} call
 * @param {string[]} names
 * @param {string} where
 */
function checkInputNames(call, names, where) {
  for (const name of names) require(name in call.inputs, `${where}: ${shown(name)} has no value`);
  for (const name of Object.keys(call.inputs)) {
    require(names.includes(name), `${where}: ${shown(name)} is no input of ${call.part}`);
  }
}

/**
 * @param {Manifest} manifest
 * @param {Source} source
 * @param {string} where
 */
function checkTokenizer(manifest, source, where) {
  const exists = manifest.tokenizers.some((each) => each.path === source.tokenizer);
  require(exists, `${where}: ${shown(source.tokenizer)} is no tokenizer`);
}

/**
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Source} source
 * @param {When} when
 * @param {Map<string, Call>} before
 * @param {string} where
 */
function checkSource(manifest, task, source, when, before, where) {
  const { kind, name = "" } = source;
  require((LEGAL[kind] ?? STAGES).includes(when), `${where}: a call ${when} has no ${kind}`);
  require(!isSet(source.only) || when === "pass", `${where}: only is for calls in a pass`);
  require(!(isSet(source.multiply) && isSet(source.divide)), `${where}: multiply and divide`);
  const { pictures = {}, tensors = {}, numbers = {} } = task.inputs;
  if (kind === "picture") {
    require(name in pictures, `${where}: the task takes no picture ${shown(name)}`);
    const mask = isSet(source.outside) ? pictures[source.outside]?.kind : "mask";
    require(mask === "mask", `${where}: the task takes no mask ${shown(source.outside)}`);
    require(!(isSet(source.every) && isSet(source.mean)), `${where}: every and mean`);
  }
  if (kind === "tensor") require(name in tensors, `${where}: the task takes no tensor ${shown(name)}`);
  if (kind === "number") require(name in numbers, `${where}: the task takes no number ${shown(name)}`);
  if (kind === "output") {
    const call = before.get(source.call ?? "");
    const visible = call && (call.when === "once" || call.when === when);
    require(visible, `${where}: ${shown(source.call)} is no earlier call whose output it can take`);
    outputSpec(manifest, task, outputOf(source));
  }
}

/**
 * @param {Manifest} manifest
 * @param {Task} task
 * @param {Map<string, Call>} calls
 */
function checkResults(manifest, task, calls) {
  const { flow } = task;
  const where = `task ${task.name}`;
  const hasLoop = isSet(flow.prediction);
  /** @type {[string, OutputName | null | undefined, When][]} */
  const results = [
    ["prediction", flow.prediction, "pass"],
    ["refined", flow.refined, "guided"],
    ["picture", flow.picture, hasLoop ? "end" : "once"],
  ];
  for (const [key, output, when] of results) {
    if (!isSet(output)) continue;
    require(calls.get(output.call)?.when === when, `${where}: ${key}: ${shown(output.call)} is no call ${when}`);
    outputSpec(manifest, task, output);
  }
  const others = flow.calls.filter((call) => call.when !== "once");
  const loopless = !isSet(flow.start) && !isSet(flow.refined) && others.length === 0;
  require(hasLoop || loopless, `${where}: a loop without a prediction`);
  require(hasLoop || task.guidance.kind === "none", `${where}: guidance without a loop`);
  const guided = flow.calls.some((call) => call.when === "guided");
  require(guided === isSet(flow.refined), `${where}: refined and guided calls come together`);
  require(isSet(flow.start) === isSet(task.strength), `${where}: start and strength come together`);
  if (!isSet(flow.start)) return;
  const kind = flow.start.kind;
  require(kind !== "tokens" && kind !== "number", `${where}: start is no latent`);
  const once = new Map([...calls].filter(([, call]) => call.when === "once"));
  checkSource(manifest, task, flow.start, "once", once, `${where}: start`);
}

/**
 * @template T
 * @param {T | null | undefined} value
 * @returns {value is T}
 */
export function isSet(value) {
  return value !== null && value !== undefined;
}
