// The counters of /metrics, and how fast they grow.

const KEPT = 120;

export function parse(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-z_:]+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    if (!metrics.has(found[1])) metrics.set(found[1], []);
    metrics.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return metrics;
}

export function value(metrics, name, wanted) {
  const matching = (metrics.get(name) ?? []).filter(({ labels }) => Object.entries(wanted ?? {}).every(([key, text]) => labels[key] === text));
  return matching.reduce((sum, one) => sum + one.value, 0);
}

// By label, those that are not zero.
export function byLabel(metrics, name, label) {
  return (metrics.get(name) ?? []).filter((one) => one.value > 0).map((one) => [one.labels[label] ?? "", one.value]);
}

export class Rates {
  constructor(counters) {
    this.counters = counters;
    this.last = null;
    this.history = Object.keys(counters).map(() => []);
  }

  take(metrics, now) {
    const values = Object.values(this.counters).map(([name, labels]) => value(metrics, name, labels));
    if (this.last) {
      const passed = Math.max(0.2, (now - this.last.now) / 1000);
      values.forEach((after, place) => {
        // A counter that is lower than before belongs to a process that was started anew.
        this.history[place].push(Math.max(0, after - this.last.values[place]) / passed);
        if (this.history[place].length > KEPT) this.history[place].shift();
      });
    }
    this.last = { now, values };
    return Object.fromEntries(Object.keys(this.counters).map((name, place) => [name, this.history[place].at(-1) ?? 0]));
  }

  of(name) { return this.history[Object.keys(this.counters).indexOf(name)]; }
  total(name) { return this.last ? this.last.values[Object.keys(this.counters).indexOf(name)] : 0; }
}
