// A tracker: nodes by zone, and who has what of the blobs under way.

import { draw, legend, make, section, short, show, table, tile } from "./dom.js";

const SHOWN_RATES = [["find", "finds"], ["announce", "announces"], ["lease", "leases"], ["heartbeat", "heartbeats"]];

function dot(node, kind, what) {
  const label = `${node.address} ${short(node.peer)}: ${what}`;
  return make("li", {}, draw("svg", { viewBox: "0 0 16 16", role: "img", "aria-label": label },
    draw("title", {}, label),
    draw("circle", { cx: 8, cy: 8, r: 7, class: kind.full ? kind.color : "empty" }),
    kind.full ? null : draw("path", { d: "M8 1a7 7 0 0 1 0 14z", class: kind.color }),
    kind.leases ? draw("circle", { cx: 8, cy: 8, r: 3, class: "origin" }) : null));
}

export class TrackerView {
  constructor(place) {
    this.chosen = null;
    this.tiles = make("div", { class: "tiles", id: "tracker-tiles" });
    this.map = section("Swarm map", "map");
    this.nodes = section("Nodes", "nodes");
    place.append(this.tiles, this.map.element, this.nodes.element);
  }

  update(state) {
    const { tracker } = state;
    const rates = SHOWN_RATES.map(([method, name]) => `${(tracker.calls_per_second[method] ?? 0).toFixed(1)} ${name}`).join(", ");
    show(this.tiles, tile("nodes", String(tracker.nodes), `in ${tracker.groups.length} groups`), tile("blobs", String(tracker.blobs), `${state.blobs.length} under way shown`),
      tile("copies", String(tracker.holders), "pairs of a blob and a node"), tile("calls a second", Object.values(tracker.calls_per_second).reduce((sum, rate) => sum + rate, 0).toFixed(1), rates));
    this.showMap(state);
    const rows = state.nodes.map((node) => [node.address, make("code", {}, short(node.peer)), node.zone || "-", node.rack || "-", node.group, String(node.blobs), `${node.silence_seconds} s`,
      make("span", { class: node.state === "live" ? "state-good" : "state-bad" }, node.state)]);
    const left = state.total - state.nodes.length;
    show(this.nodes.body, table("Nodes", ["address", "peer", "zone", "rack", "group", "blobs", "silence", "state"], rows, "None has called yet."),
      make("p", { class: "soft" }, left > 0 ? `${left} more left out; lapwing nodes lists all` : ""));
  }

  showMap(state) {
    const blob = state.blobs.find((one) => one.digest === this.chosen) ?? state.blobs[0];
    const holders = new Map(blob ? blob.holders : []);
    const leasing = new Set(blob ? blob.leases.map((lease) => lease.peer) : []);
    const zones = new Map();
    for (const node of state.nodes) {
      const zone = node.zone || "no zone";
      if (!zones.has(zone)) zones.set(zone, []);
      zones.get(zone).push(node);
    }
    const looks = (node) => {
      const leases = leasing.has(node.peer) ? ", fetches from the origin" : "";
      if (!blob) return [{ full: true, color: node.state === "live" ? "near" : "here" }, node.state];
      if (!holders.has(node.peer)) return [{ full: true, color: "empty", leases: leases !== "" }, `nothing of it${leases}`];
      return holders.get(node.peer) ? [{ full: true, color: "near" }, "all of it"] : [{ full: false, color: "near", leases: leases !== "" }, `a part of it${leases}`];
    };
    const buttons = state.blobs.map((one) => make("li", {}, make("button", {
      type: "button", "data-key": `blob ${one.group} ${one.digest}`, "aria-pressed": String(one === blob), onclick: () => { this.chosen = one.digest; this.showMap(state); },
    }, `${short(one.digest)}: ${one.complete} of ${one.total} have all, ${one.leases.length} leases`)));
    show(this.map.body,
      buttons.length > 0 ? make("ul", { class: "blobs", "aria-label": "Blobs under way" }, buttons) : make("p", { class: "soft" }, "No blob is under way: nobody fetches from an origin now."),
      make("div", { class: "zones" }, [...zones].map(([zone, nodes]) => make("div", { class: "zone" }, make("h3", {}, `${zone} (${nodes.length})`),
        make("ul", { class: "dots" }, nodes.map((node) => dot(node, ...looks(node))))))),
      blob ? legend([["near", "has all of it (half: a part)"], ["empty", "nothing"], ["origin", "fetches from the origin"]]) : legend([["near", "live"], ["here", "silent or reported"]]));
  }
}
