// Scales and axes as SVG text. An axis: {range: [low, high], ticks: [...], label, log, format}.
function axes(p, x, y, m = { l: 54, r: 14, t: 8, b: 36 }) {
  const scale = (axis, from, to) => {
    const f = axis.log ? Math.log10 : (v) => v;
    const low = f(axis.range[0]);
    const high = f(axis.range[1]);
    return (v) => from + ((f(v) - low) / (high - low)) * (to - from);
  };
  const sx = scale(x, m.l, p.w - m.r);
  const sy = scale(y, p.h - m.b, m.t);
  const right = p.w - m.r;
  const bottom = p.h - m.b;
  let s = "";
  for (const v of x.ticks) {
    s += `<path class="rule" d="M${r1(sx(v))} ${m.t}V${bottom}"/>`;
    s += words(sx(v), bottom + 14, (x.format || tick)(v), "middle");
  }
  for (const v of y.ticks) {
    s += `<path class="rule" d="M${m.l} ${r1(sy(v))}H${right}"/>`;
    s += words(m.l - 5, sy(v) + 4, (y.format || tick)(v), "end");
  }
  s += words((m.l + right) / 2, p.h - 5, x.label, "middle", "axis");
  s += `<text class="axis" text-anchor="middle" transform="translate(11 ${(m.t + bottom) / 2})` +
    ` rotate(-90)">${y.label}</text>`;
  return { sx, sy, s, left: m.l, right, top: m.t, bottom };
}
