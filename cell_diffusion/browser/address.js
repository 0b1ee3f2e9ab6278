// What a page shows, in its address: seed, class, guidance and more, to be shared
export const shared = new URLSearchParams(globalThis.location?.search);

// Writes words and numbers into the address; what is null or undefined is left out
export function share(values) {
  const given = Object.entries(values).filter(([, v]) => v !== null && v !== undefined), text = new URLSearchParams(given).toString();
  try { history.replaceState(null, '', text ? `?${text}${location.hash}` : location.pathname + location.hash); }
  catch { /* a browser may forbid it, or so many */ }
}

// The number of that name, if there is one that a field takes
export function sharedNumber(name, { min, max, step }) {
  const text = shared.get(name), value = Number(text), whole = step === '1';
  return text?.trim() && Number.isFinite(value) && value >= Number(min) && value <= Number(max) && (!whole || Number.isInteger(value)) ? value : null;
}
