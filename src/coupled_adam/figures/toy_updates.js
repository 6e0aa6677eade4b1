// Chapters 04 and 06: eight tokens, their update vectors at one training step, and the vectors' sum.

const RARE = 6;
const STEPS = 40;
const BATCH = 32;

// Six tokens of the given frequency; the two others share the rest, three to two.
function toyRun(optimizers, rarity, seed) {
  const rest = 1 - RARE * rarity;
  const model = languageModel({
    frequencies: Float64Array.of(0.6 * rest, 0.4 * rest, ...Array(RARE).fill(rarity)),
    contexts: 4, mean: [1, 0.6], spread: 0.5, taste: 0.35, start: 0.9, seed,
  });
  const rates = { sgd: 0.3, adamw: 0.03, coupled: 0.03 };
  return { model, ...train(model, { optimizers, rates, steps: STEPS, size: BATCH, seed: seed + 1 }) };
}

// The sum of one step's update vectors, and the length of the longest of them.
function sumOfUpdates(update) {
  let [x, y, longest] = [0, 0, 0];
  for (let i = 0; i < update.length; i += 2) {
    x += update[i];
    y += update[i + 1];
    longest = Math.max(longest, Math.hypot(update[i], update[i + 1]));
  }
  return { x, y, longest, ratio: Math.hypot(x, y) / longest };
}

// --- page ---

start("toy_updates", (root, config) => {
  const optimizers = config.optimizers;
  let rarity = config.rarity;
  let step = 1;
  let run;
  const HALF = 3;
  const ARROW = 0.42;
  const panels = {};

  // Below the rounding of sixteen digits there is nothing but rounding.
  const length = (ratio) => (ratio < 1e-9 ? "0" : ratio.toFixed(1));
  const draw = (o) => (p) => {
    const side = p.w;
    const at = (x, y) => [((x + HALF) / (2 * HALF)) * side, ((HALF - y) / (2 * HALF)) * side];
    const [ox, oy] = at(0, 0);
    let s = "";
    for (let k = -2; k <= 2; k++) {
      const [x, y] = at(k, k);
      s += `<path class="${k ? "rule" : "cross"}" d="M${r1(x)} 0V${side}M0 ${r1(y)}H${side}"/>`;
      if (k % 2 === 0 && k) s += words(x, oy + 13, say(k, 1), "middle") + words(ox - 4, y + 4, say(k, 1), "end");
    }
    const e = run.runs[o].path[step - 1];
    const update = run.runs[o].updates[step - 1];
    const sum = sumOfUpdates(update);
    const scale = ARROW / sum.longest;
    const [hx, hy] = [1, 0.6];
    const far = 2.5;
    s += arrow(ox, oy, ...at(hx * far, hy * far), "towards", 8);
    s += words(...at(hx * far - 0.1, hy * far + 0.2), "mean h", "end");
    const counts = run.batches[step - 1];
    for (let i = 0; i < run.model.n; i++) {
      const [x, y] = [e[2 * i], e[2 * i + 1]];
      const seen = counts.some((row) => row[i] > 0);
      s += dot(...at(x, y), i < 2 ? 7 : 4, seen ? "token" : "token absent");
      s += arrow(...at(x, y), ...at(x + scale * update[2 * i], y + scale * update[2 * i + 1]), "update", 6);
    }
    const tip = at(scale * sum.x, scale * sum.y);
    s += arrow(ox, oy, ...tip, "halo", 13) + arrow(ox, oy, ...tip, "mean", 12);
    p.value.textContent = length(sum.ratio);
    p.note.textContent = "‖sum‖ ÷ longest update";
    return s;
  };

  const grid = element("div", { class: "few" }, root);
  for (const o of optimizers) {
    panels[o] = panel(grid, {
      title: NAMES[o], kind: o, height: (w) => w, draw: draw(o),
      label: `${NAMES[o]}: eight tokens in the plane, the update of each as a thin arrow, their sum as a thick arrow from the origin`,
    });
  }
  root.insertAdjacentHTML("beforeend", '<div class="signs"><span><svg width="14" height="14"><circle class="token" cx="7" cy="7" r="5"/></svg> token in the batch</span> ' +
    '<span><svg width="14" height="14"><circle class="token absent" cx="7" cy="7" r="4"/></svg> absent</span> ' +
    '<span><svg width="26" height="12"><path class="update" d="M0 6H18"/><path class="update head" d="M26 6L18 2V10Z"/></svg> update</span> ' +
    '<span><svg width="30" height="14"><path class="mean" d="M0 7H18"/><path class="mean head" d="M30 7L18 1V13Z"/></svg> sum of the updates</span></div>' +
    '<p class="key"><b>Axes</b>: the two dimensions of the embeddings. <b>Arrows</b>: one scale in each panel, ' +
    "chosen so that its longest update is as long as the other panels' longest.</p>");
  const now = element("p", { class: "now", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);

  const show = () => {
    for (const o of optimizers) panels[o].render();
    const counts = run.batches[step - 1];
    let absent = 0;
    for (let i = 0; i < run.model.n; i++) if (counts.every((row) => !row[i])) absent++;
    const parts = optimizers.map((o) => {
      return `${NAMES[o]} ${length(sumOfUpdates(run.runs[o].updates[step - 1]).ratio)}`;
    });
    now.textContent = `Step ${step}: ${absent} of ${run.model.n} tokens are absent from the batch. ` +
      `Length of the sum, in lengths of the longest update: ${parts.join(", ")}.`;
  };
  const train = () => (run = toyRun(optimizers, rarity, config.seed));

  slider(controls, "Frequency of a rare token", [-4, -0.95, 0.05], Math.log10(rarity),
    (v) => `1 in ${Math.round(Math.pow(10, -v)).toLocaleString("en")}`,
    (v) => ((rarity = Math.pow(10, v)), train(), show()));
  const steps = slider(controls, "Training step", [1, STEPS, 1], 1, (v) => `${v} of ${STEPS}`, (v) => ((step = v), show()));
  button(controls, "Next step", () => ((step = (step % STEPS) + 1), steps.set(step), show()));
  train();
  show();
});
