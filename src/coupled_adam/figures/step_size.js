// Chapter 03: how often tokens occur, and how far Adam therefore lets each of them step.

// Adam divides by the root of the second moment, which is proportional to the frequency. In units of the
// step that the shared moment gives (the mean over the vocabulary), token i steps sqrt(mean f / f_i).
function relativeStep(frequency, tokens) {
  return Math.sqrt(1 / (tokens * frequency));
}

// Ranks to draw: all of the first, then evenly on a logarithmic axis.
function logRanks(tokens, points = 120) {
  const ranks = new Set([1, tokens]);
  for (let k = 0; k < points; k++) ranks.add(Math.round(Math.pow(tokens, k / (points - 1))));
  return [...ranks].sort((a, b) => a - b);
}

// --- page ---

start("step_size", (root, config) => {
  let exponent = config.exponent;
  const tokens = config.tokens;
  let place = Math.round(Math.pow(tokens, 0.64));
  const ranks = logRanks(tokens);
  let law;
  const decades = (low, high, every) => {
    const ticks = [];
    for (let k = Math.ceil(Math.log10(low) - 1e-9); k <= Math.log10(high) + 1e-9; k += every) ticks.push(Math.pow(10, k));
    return ticks;
  };
  const power = (v) => (v === 1 ? "1" : `10${superscript(Math.round(Math.log10(v)))}`);
  const x = { range: [1, tokens], ticks: decades(1, tokens, 1), log: true, label: "rank of the token", format: power };
  const points = (a, f) => ranks.map((r) => [a.sx(r), a.sy(f(law[r - 1]))]);
  const data = (a, f, kind) => (config.frequencies || [])
    .map(([r, q]) => `<circle class="${kind} open" cx="${r1(a.sx(r))}" cy="${r1(a.sy(f(q)))}" r="2.6"/>`).join("");
  const rule = (a) => `<path class="cursor" d="M${r1(a.sx(place))} ${a.top}V${a.bottom}"/>`;

  const drawFrequency = (p) => {
    const low = Math.pow(10, config.lowest);
    const a = axes(p, x, { range: [low, 1], ticks: decades(low, 1, 2), log: true, label: "frequency", format: power });
    const seen = points(a, (q) => q).filter(([, y]) => y <= a.bottom);
    return a.s + rule(a) + data(a, (q) => q, "") + line(seen, "ratio") + dot(a.sx(place), Math.min(a.bottom, a.sy(law[place - 1])), 5, "here");
  };
  const drawStep = (p) => {
    const a = axes(p, x, {
      range: [1e-3, 1e3], ticks: decades(1e-3, 1e3, 1), log: true,
      label: "step ÷ shared step", format: power,
    });
    const f = (q) => relativeStep(q, tokens);
    const adam = points(a, f).filter(([, y]) => y >= a.top && y <= a.bottom);
    const end = [a.sx(place), Math.max(a.top, Math.min(a.bottom, a.sy(f(law[place - 1]))))];
    const level = a.sy(1);
    return a.s + rule(a) + `<g class="adamw">${data(a, f, "data")}${line(adam, "trace")}</g>` +
      `<g class="coupled">${line([[a.left, level], [a.right, level]], "trace")}</g>` +
      `<g class="sgd">${line([[a.left, level], [a.right, level]], "trace dashed")}</g>` +
      `<g class="adamw">${mark("adamw", end[0], end[1], 5)}</g>`;
  };

  const grid = element("div", { class: "two" }, root);
  const charts = [
    panel(grid, {
      title: "How often a token occurs", label: "Frequency by rank, both axes logarithmic",
      height: (w) => Math.min(300, 0.75 * w), draw: drawFrequency,
    }),
    panel(grid, {
      title: "How far it is let step", label: "Step size by rank relative to the shared step, both axes logarithmic",
      height: (w) => Math.min(300, 0.75 * w), draw: drawStep,
    }),
  ];
  const key = (kind, text, dashed) => `<span class="${kind}"><svg width="26" height="10"><path class="trace ${dashed || ""}" d="M0 5H26"/></svg> ${text}</span> `;
  charts[0].heading.insertAdjacentHTML("afterend", '<div class="signs"><span><svg width="26" height="10"><path class="ratio" d="M0 5H26"/></svg> Zipf</span> ' +
    (config.frequencies ? '<span><svg width="12" height="10"><circle class="open" cx="6" cy="5" r="3"/></svg> the text</span>' : "") + "</div>");
  charts[1].heading.insertAdjacentHTML("afterend", '<div class="signs">' + key("adamw", NAMES.adamw) + key("coupled", NAMES.coupled) + key("sgd", NAMES.sgd, "dashed") + "</div>");
  const now = element("p", { class: "now", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);

  const times = (v) => (v >= 1000 ? Math.round(v).toLocaleString("en") : say(v, 3));
  const update = () => {
    law = zipf(tokens, exponent);
    for (const c of charts) c.render();
    const spread = law[0] / law[tokens - 1];
    charts[0].value.textContent = times(spread);
    charts[0].note.textContent = "most frequent ÷ rarest";
    charts[1].value.textContent = times(Math.sqrt(spread));
    charts[1].note.textContent = "Adam's largest step ÷ its smallest";
    now.textContent = `Adam's largest step is ${times(Math.sqrt(spread))} times its smallest; ` +
      `with one shared step the ratio is 1. The token at rank ${place.toLocaleString("en")} makes up ${say(law[place - 1])} of the text ` +
      `and steps ${times(relativeStep(law[place - 1], tokens))} times the shared step.` +
      (config.ratio ? ` In the text itself the largest is ${times(config.ratio)} times the smallest.` : "");
  };
  slider(controls, "Skew (Zipf exponent s)", [0, 2, 0.05], exponent, (v) => v.toFixed(2), (v) => ((exponent = v), update()));
  slider(controls, "Look at rank", [0, 1, 0.01], 0.64, (v) => Math.round(Math.pow(tokens, v)).toLocaleString("en"),
    (v) => ((place = Math.round(Math.pow(tokens, v))), update()));
  update();
});
