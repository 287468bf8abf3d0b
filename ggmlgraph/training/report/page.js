// Draws the charts again, over another axis, smoothed, or from nearer; the same shapes as charts.py draws first.
const W = 640, H = 220, LEFT = 62, RIGHT = 14, TOP = 12, BOTTOM = 26, MOST_DRAWN = 500, MOST_DOTS = 200, NAMES = 110, SHADES = 10;
const byId = (id) => document.getElementById(id);
const unpack = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const view = {axis: "step", log: false, smooth: 0, from: null, to: null};

function decode(run) {
  for (const name in run.axes) run.axes[name] = unpack(run.axes[name], Float64Array);
  for (const name in run.curves) run.curves[name] = run.curves[name].map((text) => unpack(text, Float32Array));
  if (run.maps) run.maps.values = run.maps.values.map((text) => unpack(text, Float32Array));
  run.axes.flops = run.flops ? run.axes.tokens.map((n) => n * run.flops) : null;
  return run;
}
let runs = JSON.parse(byId("data").textContent).map(decode);

const short = (v) => {
  for (const [unit, factor] of [["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (Math.abs(v) >= factor) return +(v / factor).toPrecision(4) + unit;
  return String(+v.toPrecision(4));
};
const clock = (s) => s < 120 ? `${+s.toPrecision(3)} s` : s < 7200 ? `${+(s / 60).toPrecision(3)} min` : `${+(s / 3600).toPrecision(3)} h`;
const told = (axis, v) => axis === "elapsed_s" ? clock(v) : short(v);

function ticks(a, b) {
  const span = b - a || 1, base = 10 ** Math.floor(Math.log10(span / 5));
  const step = base * [1, 2, 5, 10].find((m) => span / (base * m) <= 5), found = [];
  for (let k = Math.ceil(a / step); k * step <= b + span * 1e-9; k++) found.push(k * step);
  return found;
}

// The stretches of a curve that lie in view, no more than a chart shows, smoothed exponentially if asked for.
function reduced(xs, [least, mean, most], from, to) {
  const inside = [];
  for (let i = 0; i < xs.length; i++) if (xs[i] >= from && xs[i] <= to) inside.push(i);
  const size = Math.max(1, Math.ceil(inside.length / MOST_DRAWN)), points = [];
  let smooth = NaN;
  for (let i = 0; i < inside.length; i += size) {
    let low = Infinity, high = -Infinity, sum = 0, n = 0, x = 0;
    for (const j of inside.slice(i, i + size)) {
      x = xs[j];
      if (Number.isNaN(mean[j])) continue;
      low = Math.min(low, least[j]); high = Math.max(high, most[j]); sum += mean[j]; n++;
    }
    if (!n) { points.push(null); continue; }
    const value = sum / n, weight = Number.isNaN(smooth) ? 0 : view.smooth;
    smooth = weight ? weight * smooth + (1 - weight) * value : value;
    points.push([x, low, view.smooth ? smooth : value, high]);
  }
  return points;
}

function range() {
  const all = runs.map((run) => run.axes[view.axis]).filter((xs) => xs && xs.length);
  const from = Math.min(...all.map((xs) => xs[0])), to = Math.max(...all.map((xs) => xs[xs.length - 1]));
  return [view.from ?? from, view.to ?? to];
}

function draw(figure) {
  if (figure.dataset.map) { drawMap(figure); return; }
  const {name, overlay} = figure.dataset, [from, to] = range(), lines = [];
  runs.forEach((run, i) => {
    const xs = run.axes[view.axis];
    if (!xs) return;
    if (run.curves[name]) lines.push({i, points: reduced(xs, run.curves[name], from, to)});
    for (const each of [name, overlay].filter((key) => run.points[key])) {
      const [at, values] = run.points[each];
      const points = at.map((j, k) => [xs[j], values[k], values[k], values[k]]).filter(([x]) => x >= from && x <= to);
      if (points.length) lines.push({i, points, dots: true});
    }
  });
  const values = lines.flatMap(({points}) => points.flatMap((p) => p ? [p[1], p[3]] : [])).filter((v) => Number.isFinite(v) && (!view.log || v > 0));
  if (!values.length) return;
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) high = low + Math.max(Math.abs(low) * .01, 1e-12);
  const f = view.log ? Math.log10 : (v) => v, margin = view.log ? 0 : .04 * (high - low);
  const a = f(low) - margin, b = f(high) + margin;
  const X = (x) => LEFT + (x - from) / (to - from || 1) * (W - LEFT - RIGHT);
  const Y = (y) => H - BOTTOM + (f(Math.max(y, view.log ? low : -Infinity)) - a) / (b - a) * (TOP - H + BOTTOM);
  const upright = view.log && b - a >= 1 ? ticks(a, b).filter(Number.isInteger).map((k) => 10 ** k) : ticks(low, high);
  let svg = "";
  for (const y of upright) svg += `<path class="grid" d="M${LEFT} ${Y(y)}H${W - RIGHT}"/><text x="${LEFT - 6}" y="${Y(y) + 4}" text-anchor="end">${short(y)}</text>`;
  for (const x of ticks(from, to)) svg += `<text x="${X(x)}" y="${H - 8}" text-anchor="middle">${told(view.axis, x)}</text>`;
  if (runs.length === 1) svg += marks(runs[0], X, from, to);
  for (const {i, points, dots} of lines) svg += path(i, points, dots, X, Y);
  const element = figure.querySelector("svg");
  const title = element.querySelector("title").outerHTML;
  element.innerHTML = title + svg + '<path class="cross"/><rect class="selection" y="12" height="182"/>';
  figure.at = {X, from, to, lines};
}

// A map of layers: as heat in charts.py.
function drawMap(figure) {
  const run = runs[figure.dataset.run], maps = run.maps, xs = run.axes[view.axis], element = figure.querySelector("svg");
  if (!xs) return;
  const rows = Math.max(4, Math.min(14, 560 / maps.names.length)), bottom = TOP + rows * maps.names.length, n = maps.at.length;
  const from = view.from ?? 0, to = view.to ?? xs[xs.length - 1], shades = maps.shades[figure.dataset.map];
  const X = (x) => NAMES + Math.min(1, Math.max(0, (x - from) / (to - from || 1))) * (W - NAMES - RIGHT);
  const ends = maps.at.map((j) => xs[j]), paths = Array(SHADES).fill("");
  for (let j = 0; j < n; j++) {
    const a = X(j ? ends[j - 1] : 0), b = X(ends[j]);
    if (b <= a) continue;
    for (let i = 0; i < maps.names.length; i++)
      if (shades[i * n + j] !== " ") paths[shades[i * n + j]] += `M${a.toFixed(1)} ${(TOP + rows * i).toFixed(1)}H${b.toFixed(1)}v${rows.toFixed(1)}H${a.toFixed(1)}z`;
  }
  let svg = paths.map((d, shade) => `<path class="shade${shade}" d="${d}"/>`).join("");
  const every = Math.ceil(10 / rows);
  maps.names.forEach((name, i) => { if (i % every === 0) svg += `<text x="${NAMES - 6}" y="${TOP + rows * (i + .5) + 4}" text-anchor="end">${text(name.slice(0, 16))}</text>`; });
  for (const x of ticks(from, to)) svg += `<text x="${X(x)}" y="${bottom + 18}" text-anchor="middle">${told(view.axis, x)}</text>`;
  element.innerHTML = element.querySelector("title").outerHTML + svg + `<path class="cross"/><rect class="selection" y="${TOP}" height="${bottom - TOP}"/>`;
  figure.at = {X, from, to, lines: [], left: NAMES, bottom, row: (event) => {
    const box = element.getBoundingClientRect(), i = Math.floor(((event.clientY - box.top) / box.height * (bottom + BOTTOM) - TOP) / rows);
    return i >= 0 && i < maps.names.length ? i : null;
  }, value: (i, x) => maps.values[figure.dataset.map][i * n + Math.max(0, ends.findIndex((end) => end >= x))]};
}

function path(i, points, dots, X, Y) {
  let svg = `<g class="run run${i % 6}">`, stretch = [];
  const flush = () => {
    if (stretch.length > 1 && !dots) svg += `<path class="band" d="M${stretch.map((p) => `${X(p[0])} ${Y(p[3])}`).join("L")}L${[...stretch].reverse().map((p) => `${X(p[0])} ${Y(p[1])}`).join("L")}Z"/>`;
    if (stretch.length) svg += `<path class="mean" d="M${stretch.map((p) => `${X(p[0])} ${Y(p[2])}`).join("L")}"/>`;
    if (dots && points.length <= MOST_DOTS || stretch.length === 1) for (const p of stretch) svg += `<circle cx="${X(p[0])}" cy="${Y(p[2])}" r="2.5"/>`;
    stretch = [];
  };
  for (const p of points) p ? stretch.push(p) : flush();
  flush();
  return svg + "</g>";
}

const text = (value) => { const span = document.createElement("span"); span.textContent = value; return span.innerHTML; };

function marks(run, X, from, to) {
  const steps = run.axes.step, xs = run.axes[view.axis];
  let svg = "";
  for (const [step, kind, letter, what] of run.marks.slice(0, 600)) {
    let at = steps.findIndex((s) => s >= step);
    if (at < 0) at = steps.length - 1;
    const x = xs[at];
    if (x >= from && x <= to) svg += `<g class="mark ${text(kind)}"><title>${text(what)}</title><path d="M${X(x)} ${TOP}V${H - BOTTOM}"/><text x="${X(x)}" y="${TOP - 2}" text-anchor="middle">${letter}</text></g>`;
  }
  return svg;
}

let figures = [];
const redraw = () => { figures.forEach(draw); byId("whole").hidden = view.from === null; };

function point(x, first = "") {
  const lines = first ? [first] : [];
  for (const figure of figures) {
    if (!figure.at || x < figure.at.from || x > figure.at.to) continue;
    figure.querySelector(".cross").setAttribute("d", `M${figure.at.X(x)} ${TOP}V${figure.at.bottom ?? H - BOTTOM}`);
    for (const {i, points} of figure.at.lines) {
      const near = points.filter(Boolean).reduce((a, b) => !a || Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a, null);
      if (near) lines.push(`${figure.dataset.name}${runs.length > 1 ? " " + runs[i].name : ""} ${short(near[2])}`);
    }
  }
  byId("readout").textContent = `${told(view.axis, x)}: ${lines.join("  ")}`;
}

function attend(figure) {
  const value = (event) => {
    const box = figure.querySelector("svg").getBoundingClientRect(), {from, to} = figure.at;
    const left = figure.at.left ?? LEFT, share = ((event.clientX - box.left) / box.width * W - left) / (W - left - RIGHT);
    return from + Math.min(1, Math.max(0, share)) * (to - from);
  };
  let start = null, here = null;
  figure.addEventListener("pointerdown", (event) => { if (figure.at) start = value(event); });
  figure.addEventListener("pointermove", (event) => {
    if (!figure.at) return;
    here = value(event);
    const row = figure.at.row?.(event) ?? null;
    point(here, row === null ? "" : `${runs[figure.dataset.run].maps.names[row]} ${short(figure.at.value(row, here))}`);
    if (start === null) return;
    const [x0, x1] = [figure.at.X(Math.min(start, here)), figure.at.X(Math.max(start, here))];
    const selection = figure.querySelector(".selection");
    selection.setAttribute("x", x0); selection.setAttribute("width", x1 - x0);
  });
  figure.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const end = value(event), {from, to} = figure.at;
    if (Math.abs(end - start) > (to - from) / 100) [view.from, view.to] = [Math.min(start, end), Math.max(start, end)];
    start = null;
    redraw();
  });
  figure.addEventListener("dblclick", () => { view.from = view.to = null; redraw(); });
  figure.addEventListener("keydown", (event) => {
    if (!figure.at) return;
    const {from, to} = figure.at, span = to - from;
    here ??= from;
    const moves = {ArrowLeft: -.01, ArrowRight: .01, PageUp: -.1, PageDown: .1}, zooms = {"+": .5, "=": .5, "-": 2};
    if (event.key in moves) here = Math.min(to, Math.max(from, here + moves[event.key] * span));
    else if (event.key in zooms) { view.from = here - span * zooms[event.key] / 2; view.to = here + span * zooms[event.key] / 2; redraw(); }
    else if (event.key === "0" || event.key === "Escape") { view.from = view.to = null; redraw(); }
    else return;
    event.preventDefault();
    point(here);
  });
}

function begin() {
  figures = [...document.querySelectorAll("figure")];
  figures.forEach(attend);
  byId("controls").hidden = !figures.length;
  byId("axis").querySelector('[value="flops"]').hidden = !runs.some((run) => run.flops);
  redraw();
}

// Of a run that is watched the whole page comes anew; what is open and where one looks stays.
async function follow() {
  const next = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
  const open = [...document.querySelectorAll("details")].map((each) => each.open);
  for (const query of ["header", "main", "#words", "#data"]) document.querySelector(query).replaceWith(next.querySelector(query));
  document.querySelectorAll("details").forEach((each, i) => { each.open = open[i] ?? each.open; });
  runs = JSON.parse(byId("data").textContent).map(decode);
  begin();
}
if (live) new EventSource("/news").addEventListener("message", follow);

byId("axis").addEventListener("change", (event) => { view.axis = event.target.value; view.from = view.to = null; redraw(); });
byId("log").addEventListener("change", (event) => { view.log = event.target.checked; redraw(); });
byId("smooth").addEventListener("input", (event) => { view.smooth = +event.target.value; redraw(); });
byId("whole").addEventListener("click", () => { view.from = view.to = null; redraw(); });
begin();
