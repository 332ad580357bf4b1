// A browser that runs out of memory may end the whole page and load it anew. What was measured until
// then is kept in the tab, and what ran at that moment has failed.

const KEY = `mtu-bench ${globalThis.location?.pathname ?? ""}`;

/** The results of a page that ended before its record; none of a page that begins. */
export function interrupted(storage) {
  try {
    const { results, running, text } = JSON.parse(storage.getItem(KEY) ?? "null") ?? { results: [] };
    if (!running) return results;
    const reason = `the page ended or was loaded anew, most likely for want of memory; the last was "${text}"`;
    return [...results, { ...running, status: "failed", reason: reason.slice(0, 900) }];
  } catch {
    return [];
  }
}

/** Keeps what there is; a full or forbidden storage is no reason to stop. */
export function keep(storage, results, running, text) {
  try {
    storage.setItem(KEY, JSON.stringify({ results, running, text }));
  } catch {
    // nothing is kept
  }
}

/** Forgets it, once the record is posted. */
export function forget(storage) {
  try {
    storage.removeItem(KEY);
  } catch {
    // nothing was kept
  }
}
