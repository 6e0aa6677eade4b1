// A language model small enough to be trained while the reader looks on: fixed hidden states in the
// plane, one trained output embedding per token, softmax cross-entropy on batches drawn at random.

// Tokens with the given frequencies, in `contexts` contexts whose hidden states lie on a circle around
// `mean`. A context prefers some tokens: probability proportional to frequency * exp(taste . (h - mean)).
function languageModel({ frequencies, contexts, mean, spread, taste, start, seed }) {
  const n = frequencies.length;
  const uniform = mulberry32(seed);
  const draw = (size) => Float64Array.from({ length: 2 * n }, () => size * normal(uniform));
  const tastes = draw(taste);
  const embeddings = draw(start);
  for (let d = 0; d < 2; d++) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += embeddings[2 * i + d];
    for (let i = 0; i < n; i++) embeddings[2 * i + d] -= sum / n;
  }
  const hidden = [];
  const target = [];
  for (let c = 0; c < contexts; c++) {
    const angle = (2 * Math.PI * c) / contexts;
    const [dx, dy] = [spread * Math.cos(angle), spread * Math.sin(angle)];
    hidden.push([mean[0] + dx, mean[1] + dy]);
    const w = frequencies.map((f, i) => f * Math.exp(tastes[2 * i] * dx + tastes[2 * i + 1] * dy));
    const total = w.reduce((a, b) => a + b, 0);
    target.push(w.map((x) => x / total));
  }
  const cumulative = target.map((p) => {
    let sum = 0;
    return p.map((x) => (sum += x));
  });
  return { n, contexts, hidden, target, cumulative, embeddings };
}

// How often each token was drawn in each context, in a batch of `size` samples.
function sampleBatch(model, uniform, size) {
  const counts = model.hidden.map(() => new Float64Array(model.n));
  for (let k = 0; k < size; k++) {
    const c = Math.floor(uniform() * model.contexts);
    const u = uniform();
    const row = model.cumulative[c];
    let low = 0;
    let high = model.n - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (row[middle] > u) high = middle;
      else low = middle + 1;
    }
    counts[c][low] += 1;
  }
  return counts;
}

function predict(model, embeddings, c) {
  const [hx, hy] = model.hidden[c];
  const logits = new Float64Array(model.n);
  for (let i = 0; i < model.n; i++) logits[i] = hx * embeddings[2 * i] + hy * embeddings[2 * i + 1];
  return softmax(logits);
}

// The batch's mean gradient of each embedding: sum over samples of (p_i - [i = target]) h / size.
function gradient(model, embeddings, counts, size) {
  const g = new Float64Array(2 * model.n);
  for (let c = 0; c < model.contexts; c++) {
    let seen = 0;
    for (let i = 0; i < model.n; i++) seen += counts[c][i] / size;
    if (!seen) continue;
    const p = predict(model, embeddings, c);
    const [hx, hy] = model.hidden[c];
    for (let i = 0; i < model.n; i++) {
      const error = seen * p[i] - counts[c][i] / size;
      g[2 * i] += error * hx;
      g[2 * i + 1] += error * hy;
    }
  }
  return g;
}

// Expected cross-entropy in nats, over all contexts, of what the model predicts.
function crossEntropy(model, embeddings) {
  let loss = 0;
  for (let c = 0; c < model.contexts; c++) {
    const p = predict(model, embeddings, c);
    for (let i = 0; i < model.n; i++) loss -= model.target[c][i] * Math.log(p[i]);
  }
  return loss / model.contexts;
}

function meanOf(embeddings) {
  let [x, y, length] = [0, 0, 0];
  const n = embeddings.length / 2;
  for (let i = 0; i < n; i++) {
    x += embeddings[2 * i] / n;
    y += embeddings[2 * i + 1] / n;
    length += Math.hypot(embeddings[2 * i], embeddings[2 * i + 1]) / n;
  }
  return { x, y, relative: Math.hypot(x, y) / length };
}

// Trains one copy per optimizer on the same batches from the same start. For each optimizer:
// embeddings before each step and after the last (steps + 1), and the updates (steps).
function train(model, { optimizers, rates, steps, size, seed, decay }) {
  const uniform = mulberry32(seed);
  const runs = {};
  const states = {};
  for (const o of optimizers) {
    runs[o] = { path: [model.embeddings], updates: [] };
    states[o] = adamState(2 * model.n);
  }
  const batches = [];
  for (let t = 0; t < steps; t++) {
    const counts = sampleBatch(model, uniform, size);
    const factor = decay ? 0.5 * (1 + Math.cos((Math.PI * t) / steps)) : 1;
    batches.push(counts);
    for (const o of optimizers) {
      const now = runs[o].path[t];
      const g = gradient(model, now, counts, size);
      const rate = rates[o] * factor;
      const update =
        o === "sgd" ? sgdStep(g, rate)
        : o === "adamw" ? adamStep(g, states[o], rate)
        : coupledStep(g, states[o], 2, rate);
      runs[o].updates.push(update);
      runs[o].path.push(now.map((w, k) => w + update[k]));
    }
  }
  return { runs, batches };
}
