// JSON Schema in the keywords that runtime/README.md lists, and no others.

import { require, shown } from "./errors.js";
import { isObject } from "./json.js";

/**
 * @typedef {object} Schema
 * @property {string} [$schema]
 * @property {string} [title]
 * @property {string} [type]
 * @property {Record<string, Schema>} [properties]
 * @property {string[]} [required]
 * @property {Schema} [items]
 * @property {Schema | false} [additionalProperties]
 * @property {Schema} [propertyNames]
 * @property {Schema[]} [anyOf]
 * @property {unknown[]} [enum]
 * @property {string} [const]
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {number} [exclusiveMinimum]
 * @property {number} [minLength]
 * @property {number} [maxLength]
 * @property {string} [pattern]
 * @property {number} [minItems]
 * @property {number} [maxItems]
 * @property {number} [minProperties]
 * @property {number} [maxProperties]
 */

/** @type {Map<string, RegExp>} */
const PATTERNS = new Map();

/** @type {Record<string, (value: unknown) => boolean>} */
const TYPES = {
  object: isObject,
  array: Array.isArray,
  string: (value) => typeof value === "string",
  boolean: (value) => typeof value === "boolean",
  null: (value) => value === null,
  number: (value) => typeof value === "number",
  integer: Number.isInteger,
};

/**
 * Throws an Error with the place of the first value that the schema refuses.
 * @param {unknown} value
 * @param {Schema} schema
 * @param {string} [at]
 */
export function checkSchema(value, schema, at = "manifest.json") {
  if (schema.anyOf) checkAny(value, schema.anyOf, at);
  if (schema.type !== undefined) {
    const is = TYPES[schema.type];
    require(is && is(value), `${at} must be ${schema.type}`);
  }
  if (schema.const !== undefined) require(value === schema.const, `${at} must be ${schema.const}`);
  if (schema.enum) require(schema.enum.includes(value), `${at} must be one of ${shown(schema.enum)}`);
  if (typeof value === "number") checkNumber(value, schema, at);
  if (typeof value === "string") checkString(value, schema, at);
  if (Array.isArray(value)) {
    within(value.length, schema.minItems, schema.maxItems, `${at}: items`);
    const { items } = schema;
    if (items) value.forEach((item, index) => checkSchema(item, items, `${at}[${index}]`));
  } else if (isObject(value)) {
    checkObject(value, schema, at);
  }
}

/**
 * @param {unknown} value
 * @param {Schema[]} options
 * @param {string} at
 */
function checkAny(value, options, at) {
  let farthest = "";
  for (const option of options) {
    try {
      checkSchema(value, option, at);
      return;
    } catch (error) {
      const text = error instanceof Error ? error.message : "";
      if (text.length > farthest.length) farthest = text;
    }
  }
  throw new Error(farthest);
}

/**
 * @param {number} value
 * @param {Schema} schema
 * @param {string} at
 */
function checkNumber(value, schema, at) {
  within(value, schema.minimum, schema.maximum, at);
  const above = schema.exclusiveMinimum;
  require(above === undefined || value > above, `${at} must be above ${above}`);
}

/**
 * @param {string} value
 * @param {Schema} schema
 * @param {string} at
 */
function checkString(value, schema, at) {
  if (schema.minLength !== undefined || schema.maxLength !== undefined) {
    within([...value].length, schema.minLength, schema.maxLength, `${at}: length`);
  }
  if (schema.pattern === undefined) return;
  let pattern = PATTERNS.get(schema.pattern);
  if (!pattern) PATTERNS.set(schema.pattern, (pattern = new RegExp(schema.pattern, "u")));
  require(pattern.test(value), `${at}: ${shown(value)} does not match ${schema.pattern}`);
}

/**
 * @param {Record<string, unknown>} value
 * @param {Schema} schema
 * @param {string} at
 */
function checkObject(value, schema, at) {
  const keys = Object.keys(value);
  within(keys.length, schema.minProperties, schema.maxProperties, `${at}: keys`);
  for (const key of schema.required ?? []) require(key in value, `${at}: ${key} is missing`);
  const { properties = {}, additionalProperties: others, propertyNames: names } = schema;
  for (const key of keys) {
    if (names) checkSchema(key, names, `${at}: key ${shown(key)}`);
    const inner = Object.hasOwn(properties, key) ? properties[key] : others;
    require(inner !== false, `${at}: unknown key ${shown(key)}`);
    if (inner) checkSchema(value[key], inner, `${at}.${key.slice(0, 80)}`);
  }
}

/**
 * @param {number} value
 * @param {number | undefined} least
 * @param {number | undefined} most
 * @param {string} what
 */
function within(value, least = -Infinity, most = Infinity, what) {
  require(value >= least && value <= most, `${what} must be ${least} to ${most}, got ${value}`);
}
