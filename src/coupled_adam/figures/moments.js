// Chapter 02: a noisy gradient, its two moments, and the step that Adam makes of them.

const LENGTH = 120;
const FLIP = 60;

// The gradient is scale * (signal + noise), signal +1 up to the flip and -1 from there on.
function momentSeries({ beta1, beta2, noise, scale, seed }) {
  const uniform = mulberry32(seed);
  const state = adamState(1);
  const series = { g: [], m: [], root: [], step: [] };
  for (let t = 0; t < LENGTH; t++) {
    const g = scale * ((t < FLIP ? 1 : -1) + noise * normal(uniform));
    const { m, v } = adamMoments([g], state, beta1, beta2);
    series.g.push(g);
    series.m.push(m[0]);
    series.root.push(Math.sqrt(v[0]));
    series.step.push(m[0] / (Math.sqrt(v[0]) + 1e-8));
  }
  return series;
}

const meanSize = (xs) => xs.reduce((a, x) => a + Math.abs(x), 0) / xs.length;

// --- page ---

start("moments", (root, config) => {
  const knobs = { ...config };
  let series;
  const steps = { range: [1, LENGTH], ticks: [1, 30, 60, 90, 120], label: "step t", format: String };
  const curve = (a, ys) => ys.map((y, t) => [a.sx(t + 1), a.sy(y)]);
  const small = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e4) ? say(v, 1) : tick(v));
  const halves = (top) => [-top, -top / 2, 0, top / 2, top];

  const drawGradient = (p) => {
    const reach = Math.max(...series.g.map(Math.abs), ...series.root);
    const ten = Math.pow(10, Math.floor(Math.log10(reach)));
    const top = [1, 2, 4, 6, 10].find((k) => k * ten >= reach * 0.9999) * ten;
    const a = axes(p, steps, { range: [-1.05 * top, 1.05 * top], ticks: halves(top), label: "gradient", format: small },
      { l: 70, r: 14, t: 8, b: 36 });
    const band = [...curve(a, series.root), ...curve(a, series.root.map((y) => -y)).reverse()];
    return a.s + line(band, "band") + series.g.map((y, t) => dot(a.sx(t + 1), a.sy(y), 2, "sample")).join("") +
      line(curve(a, series.m), "first");
  };
  const drawStep = (p) => {
    const top = Math.max(1, ...series.step.map(Math.abs)) > 1.5 ? 4 : 1.5;
    const a = axes(p, steps, {
      range: [-top, top], ticks: top > 2 ? [-4, -2, -1, 0, 1, 2, 4] : [-1.5, -1, -0.5, 0, 0.5, 1, 1.5],
      label: "step, in learning rates",
    });
    return a.s + line([[a.left, a.sy(0)], [a.right, a.sy(0)]], "cross") + line(curve(a, series.step), "ratio");
  };
  const drawSizes = (p) => {
    const powers = [1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4];
    const narrow = p.w < 500;
    const x = {
      range: [1e-9, 1e5], log: true, ticks: narrow ? [1e-8, 1e-4, 1, 1e4] : powers,
      label: "mean step, in learning rates (log scale)", format: (v) => `10${superscript(Math.round(Math.log10(v)))}`,
    };
    const a = axes(p, x, { range: [0, 3], ticks: [], label: "" }, { l: 56, r: 12, t: 2, b: 36 });
    const one = (y, arm, size) => words(4, a.sy(y) + 4, NAMES[arm]) +
      `<path class="rule" d="M${a.left} ${a.sy(y)}H${a.right}"/><g class="${arm}">${mark(arm, a.sx(size), a.sy(y), 6)}</g>`;
    return a.s + one(2.2, "sgd", meanSize(series.g)) + one(0.8, "adamw", meanSize(series.step));
  };

  const grid = element("div", { class: "two" }, root);
  const charts = [
    panel(grid, {
      title: "The gradient and its moments", label: "Gradient by step, with its first moment and the band of its root second moment",
      height: (w) => Math.min(260, 0.7 * w), draw: drawGradient,
    }),
    panel(grid, {
      title: "Adam's step, one over the other", kind: "adamw", label: "Adam's step by step number, in units of the learning rate",
      height: (w) => Math.min(260, 0.7 * w), draw: drawStep,
    }),
    panel(root, {
      title: "", label: "Mean size of SGD's and of Adam's step on one logarithmic axis",
      height: () => 92, draw: drawSizes,
    }),
  ];
  charts[0].heading.insertAdjacentHTML("afterend",
    '<div class="signs"><span><svg width="14" height="10"><circle class="sample" cx="7" cy="5" r="3"/></svg> g<sub>t</sub></span> ' +
    '<span><svg width="22" height="10"><path class="first" d="M0 5H22"/></svg> m̂<sub>t</sub></span> ' +
    '<span><svg width="22" height="12"><path class="band" d="M0 1H22V11H0Z"/></svg> ± √v̂<sub>t</sub></span></div>');
  charts[1].heading.insertAdjacentHTML("afterend",
    '<div class="signs"><span><svg width="22" height="10"><path class="ratio" d="M0 5H22"/></svg> m̂<sub>t</sub> / (√v̂<sub>t</sub> + ε)</span></div>');
  const now = element("p", { class: "now", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);

  const update = () => {
    series = momentSeries({ ...knobs, scale: Math.pow(10, knobs.power) });
    for (const c of charts) c.render();
    const adam = meanSize(series.step);
    now.textContent = `Mean size of a step, in learning rates: SGD ${say(meanSize(series.g), 3)}, Adam ${adam.toFixed(3)}.` +
      (knobs.power <= -7 ? " The gradient has come down to ε = 10⁻⁸, which begins to count." : "");
  };
  const knob = (name, key, range, format) =>
    slider(controls, name, range, knobs[key], format, (v) => ((knobs[key] = v), update()));
  knob("Gradient scale", "power", [-8, 4, 1], (v) => (v ? `10${superscript(v)}` : "1"));
  knob("Noise", "noise", [0, 4, 0.1], (v) => `${v.toFixed(1)} × signal`);
  knob("β₁", "beta1", [0, 0.99, 0.01], (v) => v.toFixed(2));
  knob("β₂", "beta2", [0, 0.999, 0.001], (v) => v.toFixed(3));
  update();
});
