// How many streams all tabs of a browser have open, so that it can load pages besides: by HTTP/1.1
// it opens six connections to a host.

// Resolves to what gives the place of a stream back; null: other tabs have all `most` of a kind.
export function permitted(kind, most, number = 0) {
  if (!navigator.locks) return Promise.resolve(() => {}); // there only on this machine, or by TLS
  if (number === most) return Promise.resolve(null);
  return new Promise((resolve) => {
    navigator.locks.request(`aios-${kind}-${number}`, { ifAvailable: true }, (lock) => {
      if (lock) return new Promise((free) => resolve(free)); // held until then
      resolve(permitted(kind, most, number + 1));
      return undefined;
    });
  });
}
