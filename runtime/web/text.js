// Text whose every UTF-16 unit knows where it began in the raw text: step 2 of "Text".

/** @typedef {{ text: string, begins: number[] }} Aligned `begins` has the end of the raw text, too. */

const MARK_OR_JAMO = /^[\p{M}\u1160-\u11ff]/u;
const SPACE = /^\p{White_Space}$/u;

/**
 * Raw text.
 * @param {string} text
 * @returns {Aligned}
 */
export function aligned(text) {
  return { text, begins: Array.from({ length: text.length + 1 }, (_, index) => index) };
}

/**
 * @param {Aligned} whole
 * @param {number} begin
 * @param {number} end
 * @returns {Aligned}
 */
export function cutAt(whole, begin, end) {
  return { text: whole.text.slice(begin, end), begins: whole.begins.slice(begin, end + 1) };
}

/**
 * NFC, then each run of white space one space, then each code point lower-cased by itself.
 * @param {Aligned} whole
 * @returns {Aligned}
 */
export function normalised(whole) {
  const composed = whole.text.normalize("NFC") === whole.text ? whole : withNfc(whole);
  let text = "";
  /** @type {number[]} */
  const begins = [];
  let wasSpace = false;
  let at = 0;
  for (const letter of composed.text) {
    const isSpace = SPACE.test(letter);
    const lower = isSpace ? (wasSpace ? "" : " ") : letter.toLowerCase();
    text += lower;
    for (let i = 0; i < lower.length; i += 1) begins.push(composed.begins[at]);
    wasSpace = isSpace;
    at += letter.length;
  }
  begins.push(composed.begins[at]);
  return { text, begins };
}

/**
 * NFC, a piece at a time: a piece ends where what follows neither joins it nor is a mark.
 * @param {Aligned} whole
 * @returns {Aligned}
 */
function withNfc(whole) {
  const letters = [...whole.text];
  let text = "";
  /** @type {number[]} */
  const begins = [];
  let at = 0;
  for (let i = 0; i < letters.length;) {
    let piece = letters[i];
    let j = i + 1;
    while (j < letters.length && MARK_OR_JAMO.test(letters[j])) {
      piece += letters[j];
      j += 1;
    }
    const composed = piece.normalize("NFC");
    const joined = [...composed];
    const starts = startsOf(letters.slice(i, j), at);
    joined.forEach((letter, index) => {
      const from = index === 0 ? 0 : Math.max(0, starts.length - joined.length + index);
      for (let unit = 0; unit < letter.length; unit += 1) begins.push(whole.begins[starts[from]]);
    });
    text += composed;
    at += piece.length;
    i = j;
  }
  begins.push(whole.begins[at]);
  return { text, begins };
}

/**
 * @param {string[]} letters
 * @param {number} at
 */
function startsOf(letters, at) {
  return letters.map((letter) => {
    const start = at;
    at += letter.length;
    return start;
  });
}
