// Chapters 01, 04 and 06: the updates of eight tokens at one training step, head to tail, and their sum.

const RARE = 6;
const STEPS = 40;
const BATCH = 32;
const RATES = { sgd: 0.3, adamw: 0.03, coupled: 0.03 };

// The mean update of each token at each step over several trainings, which differ in their batches only,
// and the mean number of tokens that a batch lacks. A rare token occurs once in 8 * 2 ** halvings places;
// the two others share the rest, so that without a halving all eight are alike.
function toyRun(optimizers, halvings, trainings, seed) {
  const rare = 1 / (8 * Math.pow(2, halvings));
  const frequent = (1 - RARE * rare) / 2;
  const model = languageModel({
    frequencies: Float64Array.of(frequent, frequent, ...Array(RARE).fill(rare)),
    contexts: 4, mean: [1, 0.6], spread: 0.5, taste: 0.35, start: 0.25, seed,
  });
  const updates = {};
  for (const o of optimizers) updates[o] = Array.from({ length: STEPS }, () => new Float64Array(2 * model.n));
  const absent = new Float64Array(STEPS);
  for (let k = 1; k <= trainings; k++) {
    const { runs, batches } = train(model, { optimizers, rates: RATES, steps: STEPS, size: BATCH, seed: seed + k });
    for (let t = 0; t < STEPS; t++) {
      for (const o of optimizers) updates[o][t].forEach((_, i, all) => (all[i] += runs[o].updates[t][i] / trainings));
      for (let i = 0; i < model.n; i++) if (batches[t].every((row) => !row[i])) absent[t] += 1 / trainings;
    }
  }
  return { updates, absent };
}

// The way along one step's updates, taken in the order of their directions, with the token of each; its
// end is their sum. In learning rates, but SGD's, whose updates have a gradient's size, are drawn so that
// the longest of them has the length LONGEST.
const LONGEST = 2.5;
function headToTail(optimizer, update) {
  let longest = 0;
  for (let i = 0; i < update.length; i += 2) longest = Math.max(longest, Math.hypot(update[i], update[i + 1]));
  const unit = optimizer === "sgd" ? longest / LONGEST : RATES[optimizer];
  const angle = (i) => Math.atan2(update[2 * i + 1], update[2 * i]);
  const tokens = Array.from({ length: update.length / 2 }, (_, i) => i).sort((a, b) => angle(a) - angle(b));
  const places = [[0, 0]];
  for (const i of tokens) {
    const [x, y] = places[places.length - 1];
    places.push([x + update[2 * i] / unit, y + update[2 * i + 1] / unit]);
  }
  const [x, y] = places[places.length - 1];
  return { tokens, places, sum: Math.hypot(x, y) };
}

// --- page ---

start("toy_updates", (root, config) => {
  const { optimizers } = config;
  let { halvings, doublings } = config;
  let step = 1;
  let run;
  const HALF = 6.5;
  const panels = {};

  // Below the rounding of sixteen digits there is nothing but rounding.
  const length = (sum) => (sum < 1e-9 ? "0" : sum.toFixed(1));
  const now = (o) => headToTail(o, run.updates[o][step - 1]);
  const draw = (o) => (p) => {
    const side = p.w;
    const at = ([x, y]) => [((x + HALF) / (2 * HALF)) * side, ((HALF - y) / (2 * HALF)) * side];
    const [ox, oy] = at([0, 0]);
    let s = "";
    for (let k = -6; k <= 6; k += 2) {
      const [x, y] = at([k, k]);
      s += `<path class="${k ? "rule" : "cross"}" d="M${r1(x)} 0V${side}M0 ${r1(y)}H${side}"/>`;
      if (k % 4 === 0 && k) s += words(x, oy + 13, say(k, 1), "middle") + words(ox - 4, y + 4, say(k, 1), "end");
    }
    s += arrow(ox, oy, ...at([5.5, 3.3]), "towards", 8) + words(...at([5.4, 3.7]), "mean h", "end");
    const { tokens, places } = now(o);
    const leg = (k, kind, head) => arrow(...at(places[k]), ...at(places[k + 1]), kind, head);
    // The broad below the thin: often all lie on one line, there and back.
    s += arrow(ox, oy, ...at(places[tokens.length]), "sum", 18);
    tokens.forEach((i, k) => i < 2 && (s += leg(k, "frequent", 12)));
    tokens.forEach((i, k) => i >= 2 && (s += leg(k, "update", 7)));
    p.value.textContent = length(now(o).sum);
    p.note.textContent = "length of the sum";
    return s;
  };

  const grid = element("div", { class: "few" }, root);
  for (const o of optimizers) {
    panels[o] = panel(grid, {
      title: NAMES[o], kind: o, height: (w) => w, draw: draw(o),
      label: `${NAMES[o]}: the updates of eight tokens as arrows, each beginning where the last one ends, and their sum as a broad arrow from the origin`,
    });
  }
  const sample = (kind, text, head = "M26 6L18 2V10Z") =>
    `<span><svg width="30" height="14"><path class="${kind}" d="M0 6H16"/><path class="${kind} head" d="${head}"/></svg> ${text}</span> `;
  root.insertAdjacentHTML("beforeend", `<div class="signs ${optimizers[optimizers.length - 1]}">` +
    sample("frequent", "a frequent token", "M28 6L16 0V12Z") + sample("update", "a rare token") + sample("sum", "the sum", "M30 6L16 0V13Z") + "</div>" +
    '<p class="key"><b>Arrows</b>: the update of each token, laid head to tail in the order of their directions. ' +
    "<b>Axes</b>: the two dimensions of the embeddings, " +
    (optimizers.length === 1 && optimizers[0] === "sgd" ? "on a scale that fits the longest arrow"
      : "in learning rates" + (optimizers.includes("sgd") ? "; SGD's arrows, which are far shorter, on a scale of their own" : "")) + ".</p>");
  const spoken = element("p", { class: "now", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);

  const show = () => {
    for (const o of optimizers) panels[o].render();
    const count = Math.pow(2, doublings);
    const parts = optimizers.map((o) => `${NAMES[o]} ${length(now(o).sum)}`);
    spoken.textContent = `Step ${step}, ${count > 1 ? `mean of ${count} trainings` : "one training"}. Of 8 tokens ` +
      `${+run.absent[step - 1].toFixed(1)} are absent from a batch of ${BATCH}. Length of the sum: ${parts.join(", ")}.`;
  };
  const train = () => ((run = toyRun(optimizers, halvings, Math.pow(2, doublings), config.seed)), show());

  slider(controls, "A rare token is", [0, 10, 1], halvings,
    (v) => `1 in ${(8 * Math.pow(2, v)).toLocaleString("en")}` + (v ? "" : ", as all are"),
    (v) => ((halvings = v), train()));
  const steps = slider(controls, "Training step", [1, STEPS, 1], 1, (v) => `${v} of ${STEPS}`, (v) => ((step = v), show()));
  slider(controls, "Mean over", [0, 6, 1], doublings, (v) => (v ? `${Math.pow(2, v)} trainings` : "one training"),
    (v) => ((doublings = v), train()));
  button(controls, "Next step", () => ((step = (step % STEPS) + 1), steps.set(step), show()));
  train();
});
