// What every live figure shares: the optimizers' arithmetic, and the little that is needed of a page.
// The first half touches no page; the tests run it under node against numpy and torch.

// A seeded source of numbers in [0, 1), the same in every browser.
function mulberry32(seed) {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// One standard normal number (Box and Muller) from two uniform ones.
function normal(uniform) {
  const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
  return radius * Math.cos(2 * Math.PI * uniform());
}

function zipf(n, exponent) {
  const weights = Float64Array.from({ length: n }, (_, i) => Math.pow(i + 1, -exponent));
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => w / total);
}

// Plain loops here and below: a figure trains three models while the reader waits.
function softmax(logits) {
  const p = new Float64Array(logits.length);
  let top = -Infinity;
  for (let i = 0; i < p.length; i++) if (logits[i] > top) top = logits[i];
  let total = 0;
  for (let i = 0; i < p.length; i++) total += p[i] = Math.exp(logits[i] - top);
  for (let i = 0; i < p.length; i++) p[i] /= total;
  return p;
}

// The optimizers: gradient in, update (to be added to the weights) out. Adam's state is changed.
const adamState = (size) => ({ t: 0, m: new Float64Array(size), v: new Float64Array(size) });

function sgdStep(gradient, rate) {
  return gradient.map((g) => -rate * g);
}

function adamMoments(gradient, state, beta1, beta2) {
  state.t += 1;
  for (let k = 0; k < gradient.length; k++) {
    state.m[k] = beta1 * state.m[k] + (1 - beta1) * gradient[k];
    state.v[k] = beta2 * state.v[k] + (1 - beta2) * gradient[k] * gradient[k];
  }
  const c1 = 1 - Math.pow(beta1, state.t);
  const c2 = 1 - Math.pow(beta2, state.t);
  return { m: state.m.map((x) => x / c1), v: state.v.map((x) => x / c2) };
}

function adamStep(gradient, state, rate, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8) {
  const { m, v } = adamMoments(gradient, state, beta1, beta2);
  return m.map((x, k) => (-rate * x) / (Math.sqrt(v[k]) + epsilon));
}

// Weights lie row by row, one row of `columns` numbers per token: v becomes its mean over the rows.
function coupledStep(gradient, state, columns, rate, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8) {
  const { m, v } = adamMoments(gradient, state, beta1, beta2);
  const shared = new Float64Array(columns);
  v.forEach((x, k) => (shared[k % columns] += (x * columns) / v.length));
  return m.map((x, k) => (-rate * x) / (Math.sqrt(shared[k % columns]) + epsilon));
}

// From here on: the page. NAMES and MARKERS of the arms come from palette.py through page.py.

const MINUS = "−";

// A number for people: a real minus sign, powers of ten written out.
function say(value, digits = 2) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text = size.toPrecision(digits);
  if (size >= 1e4 || size < 1e-3) {
    const [head, power] = value.toExponential(digits - 1).split("e");
    return `${head}×10${superscript(+power)}`.replace("-", MINUS);
  }
  if (text.includes("e")) text = String(Math.round(size));
  return (value < 0 ? MINUS : "") + text;
}

const tick = (v) => (v < 0 ? MINUS : "") + +Math.abs(v).toPrecision(3);

const superscript = (n) =>
  [...String(n)].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c])).join("");

function element(tag, attributes, parent, text) {
  const node = document.createElement(tag);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// A labelled range input; `format` turns its value into the words that are shown and spoken.
function slider(parent, name, [low, high, step], value, format, changed) {
  const label = element("label", {}, parent);
  const head = element("span", {}, label, name + " ");
  const shown = element("b", {}, head);
  const input = element("input", { type: "range", min: low, max: high, step }, label);
  const show = () => {
    shown.textContent = format(+input.value);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", () => (show(), changed(+input.value)));
  const set = (v) => ((input.value = v), show());
  set(value);
  return { input, set, get value() { return +input.value; } };
}

function button(parent, text, pressed) {
  const node = element("button", { type: "button" }, parent, text);
  node.addEventListener("click", pressed);
  return node;
}

// One panel with axes. `draw` is called with the plot whenever the panel gets its size or is asked
// to; everything is drawn at the size it is seen at, so text stays readable on a telephone.
function panel(parent, { title, kind, label, height, draw }) {
  const box = element("div", { class: "plot " + (kind || "") }, parent);
  const heading = element("div", { class: "name" }, box, title);
  const value = element("div", { class: "value" }, box);
  const note = element("div", { class: "below" }, box);
  box.insertAdjacentHTML("beforeend", '<svg role="img"></svg>');
  const svg = box.lastChild;
  const self = { box, heading, value, note, svg, w: 0, h: 0 };
  svg.setAttribute("aria-label", label);
  self.render = () => {
    const width = Math.round(box.clientWidth);
    if (!width) return;
    self.w = width;
    self.h = Math.round(height(width));
    svg.setAttribute("width", self.w);
    svg.setAttribute("height", self.h);
    svg.innerHTML = draw(self);
  };
  new ResizeObserver(() => Math.round(box.clientWidth) !== self.w && self.render()).observe(box);
  return self;
}

const r1 = (v) => Math.round(v * 10) / 10;
const words = (x, y, text, anchor = "start", kind = "tick") =>
  `<text class="${kind}" x="${r1(x)}" y="${r1(y)}" text-anchor="${anchor}">${text}</text>`;
const line = (points, kind) =>
  `<path class="${kind}" d="M${points.map(([x, y]) => r1(x) + " " + r1(y)).join("L")}"/>`;
const dot = (x, y, radius, kind) =>
  `<circle class="${kind}" cx="${r1(x)}" cy="${r1(y)}" r="${radius}"/>`;

// The arm's own marker, as beside its name and in the pictures.
function mark(arm, x, y, r) {
  if (MARKERS[arm] === "o") return dot(x, y, r, "mark");
  const turned = MARKERS[arm] === "D" ? ` transform="rotate(45 ${r1(x)} ${r1(y)})"` : "";
  return `<path class="mark" d="M${r1(x - r)} ${r1(y - r)}h${2 * r}v${2 * r}h${-2 * r}z"${turned}/>`;
}

// An arrow in screen coordinates; one too short for a head is a dot, or nothing for a single token's.
function arrow(x0, y0, x1, y1, kind, head = 9) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 2) return kind === "update" || kind === "frequent" ? "" : dot(x0, y0, 3.5, kind + " still");
  const size = Math.min(head, length);
  const ux = (x1 - x0) / length;
  const uy = (y1 - y0) / length;
  const bx = x1 - ux * size;
  const by = y1 - uy * size;
  const half = size * 0.5;
  return line([[x0, y0], [bx, by]], kind) +
    `<path class="${kind} head" d="M${r1(x1)} ${r1(y1)}L${r1(bx - uy * half)} ` +
    `${r1(by + ux * half)}L${r1(bx + uy * half)} ${r1(by - ux * half)}Z"/>`;
}

// Whoever asked for less motion sees the end of a run and moves through it by hand.
const stillness = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Light letters mean a dark page; asking the letters works on every site and in every notebook.
function watchTheme(root) {
  const look = () => {
    const [r, g, b] = getComputedStyle(root).color.match(/[\d.]+/g).map(Number);
    root.classList.toggle("dark", 0.3 * r + 0.6 * g + 0.1 * b > 128);
  };
  look();
  const watcher = new MutationObserver(look);
  const options = { attributeFilter: ["data-theme", "theme", "class", "data-jp-theme-light"] };
  for (const node of [document.documentElement, document.body]) watcher.observe(node, options);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
}

// Builds every figure of this kind that has not been built yet: the one above the script, as a rule.
function start(kind, build) {
  const waiting = `.live-figure[data-figure="${kind}"]:not([data-ready])`;
  for (const root of document.querySelectorAll(waiting)) {
    root.setAttribute("data-ready", "");
    watchTheme(root);
    build(root, JSON.parse(root.dataset.config));
  }
}
