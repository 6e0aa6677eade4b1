// The first picture of the book: one cloud of tokens, three optimizers, the reader's own skew.

const TOKENS = 400;
const STEPS = 240;
const PER_SECOND = 60;
const MEAN = [1, 0.6];
// At these all three end at about the same loss.
const RATES = { sgd: 4, adamw: 0.05, coupled: 0.05 };

function cloudRun(exponent, seed) {
  const model = languageModel({
    frequencies: zipf(TOKENS, exponent), contexts: 6, mean: MEAN, spread: 0.5,
    taste: 0.35, start: 0.25, seed,
  });
  const { runs } = train(model, {
    optimizers: Object.keys(RATES), rates: RATES,
    steps: STEPS, size: 2 * TOKENS, seed: seed + 1, decay: true,
  });
  return { model, runs };
}

// Half the side of the window: the same for the three panels and for the whole of a run.
function cloudWindow(runs) {
  let reach = 1.2;
  for (const o in runs) for (const x of runs[o].path[STEPS]) reach = Math.max(reach, Math.abs(x));
  return 1.08 * reach;
}

// --- page ---

// Runs `tick(seconds since the last)` while playing; starts when first seen, pauses out of sight.
function player(root, tick, changed) {
  let last = 0;
  let running = false;
  const frame = (now) => {
    if (!running) return;
    const seconds = Math.min((now - last) / 1000, 0.05);
    last = now;
    tick(seconds);
    requestAnimationFrame(frame);
  };
  const self = {
    get running() { return running; },
    set(on) {
      if (on === running) return;
      running = on;
      changed();
      if (on) requestAnimationFrame((now) => ((last = now), frame(now)));
    },
    autoplay() {
      let wanted = true;
      new IntersectionObserver(([seen]) => {
        if (seen.isIntersecting === running) return;
        if (seen.isIntersecting ? wanted : running) {
          wanted = !seen.isIntersecting;
          self.set(seen.isIntersecting);
        }
      }, { threshold: 0.4 }).observe(root);
    },
  };
  return self;
}

start("cloud", (root, config) => {
  let exponent = config.exponent;
  let step = 0;
  let run;
  let half;
  // Tokens of like frequency share one path: round dots are strokes of no length with round ends.
  const classes = [0, 1, 3, 8, 20, 60, TOKENS];
  const panels = {};

  const train = () => {
    run = cloudRun(exponent, config.seed);
    half = cloudWindow(run.runs);
  };

  const draw = (o) => (p) => {
    const m = 18;
    const side = p.w - m - 4;
    const at = (x, y) => [m + ((x + half) / (2 * half)) * side, 1 + ((half - y) / (2 * half)) * side];
    const [ox, oy] = at(0, 0);
    const unit = half > 3.5 ? 2 : 1;
    let s = "";
    for (let k = -Math.floor(half / unit); k <= half / unit; k++) {
      const [x, y] = at(k * unit, k * unit);
      const kind = k ? "rule" : "cross";
      s += `<path class="${kind}" d="M${r1(x)} 1V${1 + side}M${m} ${r1(y)}H${m + side}"/>`;
      if (p.w > 150 || Math.abs(k) === 1) {
        s += words(x, p.h - 3, say(k * unit, 1), "middle");
        if (k) s += words(m - 3, y + 4, say(k * unit, 1), "end");
      }
    }
    const e = run.runs[o].path[step];
    const q = zipf(TOKENS, exponent);
    const size = Math.sqrt(p.w / 220);
    for (let c = classes.length - 2; c >= 0; c--) {
      let d = "";
      for (let i = classes[c]; i < classes[c + 1]; i++) {
        const [x, y] = at(e[2 * i], e[2 * i + 1]);
        d += `M${r1(x)} ${r1(y)}h0`;
      }
      s += `<path class="tokens" stroke-width="${r1((3.2 + 26 * Math.sqrt(q[classes[c]])) * size)}" d="${d}"/>`;
    }
    const mu = meanOf(e);
    s += arrow(ox, oy, ...at(mu.x, mu.y), "halo", 13) + arrow(ox, oy, ...at(mu.x, mu.y), "mean", 12);
    p.value.textContent = mu.relative.toFixed(2);
    p.note.textContent = `loss ${crossEntropy(run.model, e).toFixed(2)}`;
    return s;
  };

  const grid = element("div", { class: "three" }, root);
  for (const o of Object.keys(RATES)) {
    panels[o] = panel(grid, {
      title: NAMES[o], kind: o, height: (w) => w - 3, draw: draw(o),
      label: `${NAMES[o]}: the tokens' embeddings, dimension 1 to the right, dimension 2 upwards, ` +
        "and an arrow from the origin to their mean",
    });
  }
  root.insertAdjacentHTML("beforeend", '<p class="key"><b>Number</b> and <b>arrow</b>: how far the mean ' +
    "of all tokens is off the origin, ‖μ‖ ÷ mean ‖e‖. <b>Dots</b>: 400 tokens, the larger the more frequent. " +
    "<b>Axes</b>: the two dimensions of the embeddings. <b>Learning rates</b>: " +
    Object.entries(RATES).map(([o, rate]) => `${NAMES[o]} ${rate}`).join(", ") + ".</p>");
  const now = element("p", { class: "unseen", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);

  const render = () => {
    for (const o in panels) panels[o].render();
    steps.set(step);
  };
  const report = () => {
    const part = (o) => {
      const e = run.runs[o].path[step];
      return `${NAMES[o]} ${meanOf(e).relative.toFixed(2)}, loss ${crossEntropy(run.model, e).toFixed(2)}`;
    };
    now.textContent = `Step ${step}. Relative norm of the mean: ${Object.keys(panels).map(part).join("; ")}.`;
  };
  const go = (to) => ((step = to), render(), report());

  let clock = 0;
  const play = player(root, (seconds) => {
    clock += seconds * PER_SECOND;
    step = Math.min(STEPS, Math.floor(clock));
    render();
    if (step === STEPS) play.set(false);
  }, () => {
    playing.textContent = play.running ? "Pause" : "Play";
    if (!play.running) report();
  });
  const playing = button(controls, "Play", () => {
    if (!play.running && step === STEPS) step = 0;
    clock = step;
    play.set(!play.running);
  });
  button(controls, "Restart", () => {
    clock = step = 0;
    render();
    play.set(!stillness());
    if (stillness()) report();
  });
  const skew = slider(controls, "Skew (Zipf exponent)", [0, 2, 0.1], exponent,
    (v) => v.toFixed(1) + (v === 0 ? ", all alike" : v === 1 ? ", natural text" : ""),
    (v) => {
      exponent = v;
      train();
      if (!play.running && step === 0) step = STEPS;
      render();
      if (!play.running) report();
    });
  const steps = slider(controls, "Step", [0, STEPS, 1], 0, (v) => `${v} of ${STEPS}`, (v) => {
    play.set(false);
    go(v);
  });
  train();
  go(stillness() ? STEPS : 0);
  if (!stillness()) play.autoplay();
});
