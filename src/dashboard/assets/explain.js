// Where the time of one pull went: a row for each phase, a column for each moment.

import { bar, draw, legend, make, seconds, share, short, size, table } from "./dom.js";

const KIND = {
  origin: "origin", peers_near: "near", peers_far: "far", seeds: "seed", fault: "wait", client: "wait", limit: "wait",
  resolve: "wait", authorize: "wait", find: "wait", lease: "wait", metainfo: "wait", origin_answer: "wait",
  verify: "work", write: "work", inflate: "work",
};
const LEFT = 130, WIDTH = 960, ROW = 18;

export const sources = (bytes) => [["origin", bytes.origin], ["near", bytes.peers_near], ["far", bytes.peers_far], ["seed", bytes.seeds], ["here", bytes.here_before]];
export const sourceLegend = () => legend([["origin", "origin"], ["near", "peers of this zone"], ["far", "peers of other zones"], ["seed", "seeds"], ["here", "here before"]]);

function cells(phase) {
  if (phase.under_way.length > 0) return phase.under_way;
  const most = Math.max(1, ...phase.bytes_in);
  return phase.bytes_in.map((bytes) => bytes / most);
}

function picture(pull) {
  const phases = pull.phases.filter((phase) => phase.name !== "transfer");
  const columns = Math.max(1, ...phases.map((phase) => cells(phase).length));
  const length = pull.cell_seconds * columns;
  const step = (WIDTH - LEFT) / columns;
  const height = phases.length * ROW + 22;
  const rows = phases.map((phase, row) => {
    const y = row * ROW;
    const shown = [draw("text", { x: 0, y: y + 13 }, phase.name)];
    cells(phase).forEach((much, column) => {
      if (much <= 0) return;
      shown.push(draw("rect", {
        x: (LEFT + column * step).toFixed(2), y: y + 2, width: Math.max(1, step).toFixed(2), height: ROW - 4,
        class: KIND[phase.name] ?? "step", "fill-opacity": Math.min(1, 0.3 + 0.7 * much).toFixed(2),
      }));
    });
    const took = phase.count > 0 ? `, ${phase.count} times, ${seconds(phase.busy_seconds)} all together` : "";
    shown.push(draw("title", {}, `${phase.name}: from ${seconds(phase.first_seconds)} to ${seconds(phase.last_seconds)}${took}${phase.bytes > 0 ? `, ${size(phase.bytes)}` : ""}`));
    return draw("g", {}, shown);
  });
  const marks = [0, 0.25, 0.5, 0.75, 1].map((part) => {
    const x = LEFT + part * (WIDTH - LEFT);
    return draw("g", {},
      draw("line", { x1: x, x2: x, y1: 0, y2: phases.length * ROW, class: "axis" }),
      draw("text", { x, y: height - 6, class: "soft", "text-anchor": part === 0 ? "start" : part === 1 ? "end" : "middle" }, seconds(length * part)));
  });
  return draw("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", id: "flame", "aria-label": `What was done when, within ${seconds(length)}; the table below says the same` }, marks, rows);
}

export function explained(pull) {
  const causes = pull.limited_by.filter((cause) => cause.share >= 0.01);
  return [
    make("p", {}, make("code", { id: "explained" }, pull.name), ` ${pull.state === "running" ? "runs for" : "took"} ${seconds(pull.seconds)}, ${size(pull.length_bytes)}`),
    bar(sources(pull.bytes), Object.values(pull.bytes).reduce((sum, bytes) => sum + bytes, 0), "Bytes by source"),
    sourceLegend(),
    make("h3", {}, "What limited it"),
    causes.length === 0 ? make("p", { class: "soft" }, "nothing was waited for")
      : make("ul", { id: "causes" }, causes.map((cause) => make("li", {}, `${share(cause.share, 1)} (${seconds(cause.seconds)}): ${cause.text}`))),
    make("h3", {}, "What was done when"),
    picture(pull),
    make("details", {}, make("summary", { "data-key": "phases" }, "The same as a table, and its blobs"),
      table("Phases", ["phase", "from", "to", "times", "all together", "bytes"], pull.phases.map((phase) =>
        [phase.name, seconds(phase.first_seconds), seconds(phase.last_seconds), String(phase.count), seconds(phase.busy_seconds), phase.bytes > 0 ? size(phase.bytes) : ""]), "nothing"),
      table("Blobs", ["blob", "what", "size", "here before", "peers and seeds", "origin", "now"], pull.blobs.map((blob) =>
        [short(blob.digest), blob.kind, size(blob.length_bytes), size(blob.bytes.here_before), size(blob.bytes.peers_near + blob.bytes.peers_far + blob.bytes.seeds), size(blob.bytes.origin), blob.state]), "none")),
  ];
}
