// A node, or a seed.

import { bar, draw, legend, make, seconds, section, share, short, show, size, table, tile } from "./dom.js";
import { explained, sources } from "./explain.js";
import { Rates, byLabel, parse, value } from "./rates.js";

const STATES = { proved: "state-good", quarantined: "state-bad", pending: "state-wait", searching: "state-wait" };

function chart(rates) {
  const width = 600, height = 120;
  const lines = [["origin", "origin"], ["peers", "near"], ["served", "seed"]].map(([name, kind]) => [rates.of(name), kind]);
  const most = Math.max(1024, ...lines.flatMap(([history]) => history));
  const points = (history) => history.map((rate, place) => `${(width - (history.length - 1 - place) * (width / 119)).toFixed(1)},${(height - 4 - (rate / most) * (height - 20)).toFixed(1)}`).join(" ");
  return [
    draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Bytes a second in the last two minutes; the numbers of now stand above" },
      draw("line", { x1: 0, x2: width, y1: height - 4, y2: height - 4, class: "axis" }),
      draw("text", { x: 0, y: 11, class: "soft" }, `${size(most)}/s`),
      lines.map(([history, kind]) => draw("polyline", { points: points(history), class: `line ${kind}` }))),
    legend([["origin", "from the origin"], ["near", "from peers"], ["seed", "to peers"]]),
  ];
}

export class NodeView {
  constructor(place, isSeed) {
    this.isSeed = isSeed;
    this.chosen = null;
    this.explainedAt = 0;
    this.asking = false;
    this.rates = new Rates({
      peers: ["lapwing_piece_bytes_total", { source: "peer" }],
      origin: ["lapwing_piece_bytes_total", { source: "origin" }],
      served: ["lapwing_served_bytes_total", {}],
    });
    this.tiles = make("div", { class: "tiles", id: "tiles" });
    this.pulls = section("Pulls", "pulls");
    this.explain = section("Where the time went", "explain");
    this.traffic = section("Bytes by source", "traffic");
    this.cache = section("Cache", "cache");
    this.layers = section("Layers mounted on demand", "layers");
    this.fallbacks = section("Layers that were not, and why", "fallbacks");
    this.trackers = section("Trackers", "trackers");
    const pulling = isSeed ? [] : [this.pulls.element, this.explain.element];
    const layers = isSeed ? [] : [this.layers.element, this.fallbacks.element];
    place.append(this.tiles, ...pulling,
      make("div", { class: "two" }, this.traffic.element, this.cache.element), ...layers, this.trackers.element);
  }

  async update(state, metricsText) {
    const metrics = parse(metricsText);
    const now = this.rates.take(metrics, performance.now());
    this.showTiles(state, metrics, now);
    show(this.traffic.body, ...chart(this.rates));
    this.showCache(state.cache, metrics);
    this.showTrackers(state.trackers);
    if (this.isSeed) return;
    this.showPulls(state.pulls);
    this.showLayers(state);
    this.showFallbacks(metrics);
    await this.showExplained(state.pulls);
  }

  showTiles(state, metrics, now) {
    show(this.tiles,
      tile("from peers", `${size(Math.round(now.peers))}/s`, `${size(this.rates.total("peers"))} since the start`),
      tile("from the origin", `${size(Math.round(now.origin))}/s`, `${size(this.rates.total("origin"))} since the start`),
      tile("to peers", `${size(Math.round(now.served))}/s`, `${size(this.rates.total("served"))} since the start`),
      tile("connected peers", String(value(metrics, "lapwing_peers")), `this is ${short(state.peer)}`),
      tile("blobs wanted now", String(value(metrics, "lapwing_active_blobs")), state.busy ? "busy" : "idle"));
  }

  showPulls(pulls) {
    const rows = pulls.map((pull) => {
      const choose = make("button", {
        type: "button", "data-key": `pull ${pull.digest}`, "aria-pressed": String(this.chosen === pull.name),
        onclick: () => { this.chosen = pull.name; this.explainedAt = 0; },
      }, pull.kind === "blob" ? short(pull.digest) : pull.name);
      const came = Object.values(pull.bytes).reduce((sum, bytes) => sum + bytes, 0);
      return [choose, make("span", { class: pull.state === "running" ? "state-wait" : "" }, pull.state),
        seconds(pull.seconds), size(pull.length_bytes), bar(sources(pull.bytes), Math.max(pull.length_bytes, came), `${share(came, pull.length_bytes)} here`),
        size(pull.bytes.peers_near + pull.bytes.peers_far + pull.bytes.seeds), size(pull.bytes.origin),
        pull.limited_by.length > 0 ? pull.limited_by[0].text : ""];
    });
    show(this.pulls.body, table("Pulls, the newest first", ["pull", "state", "took", "size", "here, by source", "from peers", "from the origin", "limited by"], rows,
      "Nothing came through this node's mirror since it started."));
  }

  async showExplained(pulls) {
    const pull = pulls.find((one) => one.name === this.chosen) ?? pulls[0];
    if (!pull) return show(this.explain.body, make("p", { class: "soft" }, "What was pulled last is explained here."));
    const changed = this.explainedState !== `${pull.name} ${pull.state}`;
    const due = changed ? 0 : pull.state === "running" || pull.faults > 0 ? 1000 : 5000;
    if (this.asking || performance.now() - this.explainedAt < due) return undefined;
    this.asking = true;
    try {
      const path = (pull.kind === "blob" ? pull.digest : pull.name).split("/").map(encodeURIComponent).join("/");
      const answer = await fetch(`/api/v1/pulls/${path}`);
      if (answer.ok) {
        const open = this.explain.body.querySelector("details")?.open ?? false;
        show(this.explain.body, ...explained(await answer.json()));
        this.explain.body.querySelector("details").open = open;
        this.explainedAt = performance.now();
        this.explainedState = `${pull.name} ${pull.state}`;
      }
    } finally { this.asking = false; }
    return undefined;
  }

  showCache(cache, metrics) {
    const free = cache.quota_bytes ? [bar([["near", cache.bytes]], cache.quota_bytes, `${share(cache.bytes, cache.quota_bytes)} of the quota`), make("p", {}, `${size(cache.bytes)} of ${size(cache.quota_bytes)}`)]
      : [make("p", {}, `${size(cache.bytes)}, without a quota`)];
    show(this.cache.body, ...free,
      make("p", { class: "soft" }, `${cache.blobs} blobs, ${cache.pinned_blobs} pinned; ${value(metrics, "lapwing_evicted_blobs_total")} evicted since the start`),
      make("p", { class: "soft" }, `${cache.containerd_blobs} more in containerd's content store, ${size(cache.containerd_bytes)}`));
  }

  showLayers({ layers, layer_counts: counts }) {
    const rows = layers.map((layer) => [make("code", {}, short(layer.digest)), layer.image,
      make("span", { class: STATES[layer.state] ?? "" }, layer.state),
      layer.spans > 0 ? bar([["near", layer.spans_fetched]], layer.spans, share(layer.spans_fetched, layer.spans)) : "",
      layer.spans > 0 ? share(layer.spans_fetched, layer.spans) : "", layer.reason]);
    show(this.layers.body, make("p", { class: "soft" }, `${counts.pending} pending, ${counts.proved} proved, ${counts.all} known`),
      table("Layers", ["layer", "image", "state", "fetched", "", "why"], rows, "None yet."));
  }

  showFallbacks(metrics) {
    const rows = [["left to be pulled whole", "lapwing_snapshot_fallbacks_total"], ["unpacked by containerd", "lapwing_snapshot_layers_unpacked_total"]]
      .flatMap(([what, name]) => byLabel(metrics, name, "reason").map(([reason, count]) => [reason, what, String(count)]));
    show(this.fallbacks.body, table("Reasons", ["reason", "what became of them", "layers"], rows, "None since the start."));
  }

  showTrackers(trackers) {
    const rows = trackers.map(({ address, problem }) => [address,
      make("span", { class: problem ? "state-bad" : "state-good" }, problem ? "not asked for now" : "in use"), problem ?? ""]);
    show(this.trackers.body, table("Trackers", ["tracker", "state", "what is wrong"], rows, "None is configured: blobs come from the registries alone."));
  }
}
