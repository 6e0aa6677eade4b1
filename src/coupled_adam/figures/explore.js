// A reader's own Python function over a table of its values: one state for each setting of the knobs.

// The place in the table for one choice a knob; the last knob runs fastest.
const placeOf = (choices, sizes) => choices.reduce((place, k, i) => place * sizes[i] + k, 0);

// --- page ---

// A switch or a list of words; numbers in order have a slider.
function picker(parent, knob, changed) {
  const label = element("label", { class: knob.control }, parent);
  const head = element("span", {}, label, knob.label + " ");
  if (knob.control === "switch") {
    const input = element("input", { type: "checkbox" }, label);
    input.checked = knob.start === 1;
    input.addEventListener("change", () => changed(input.checked ? 1 : 0));
    return;
  }
  const select = element("select", {}, label);
  knob.values.forEach((value, k) => element("option", { value: k }, select, value));
  select.value = knob.start;
  select.addEventListener("change", () => changed(+select.value));
}

// With a kernel, real controls stand in the same output and do more: the table gives way to them.
// Without one, JupyterLab puts a line there that says that they are missing: that gives way.
function shareOutput(root, token) {
  const area = root.closest(".jp-OutputArea");
  const look = () => {
    root.hidden = Boolean((area || document).querySelector("." + token));
    for (const child of area ? area.querySelectorAll(".jp-OutputArea-child") : []) {
      const missing = /^\s*(Loading widget|Error displaying widget)/.test(child.textContent);
      child.style.display = missing && !child.contains(root) ? "none" : "";
    }
  };
  new MutationObserver(look).observe(area || document.body, { childList: true, subtree: true });
  look();
}

start("explore", (root, config) => {
  const states = root.querySelectorAll(".state");
  // Most pictures hold only what differs from the first one, which is laid below them.
  const first = states[0].querySelector("img");
  for (const picture of root.querySelectorAll("[data-over]"))
    picture.style.background = `#fff url(${first.getAttribute("src")}) 0 0 / 100% 100%`;
  const choices = config.knobs.map((knob) => knob.start);
  const sizes = config.knobs.map((knob) => knob.values.length);
  const now = element("p", { class: "unseen", "aria-live": "polite" }, root);
  const controls = element("div", { class: "knobs" }, root);
  root.prepend(controls);
  const show = () => {
    const place = config.states[placeOf(choices, sizes)];
    states.forEach((state, k) => (state.hidden = k !== place));
    const picture = states[place].querySelector("img");
    now.textContent = config.knobs.map((knob, i) => `${knob.label} ${knob.values[choices[i]]}`).join(", ") +
      ": " + (picture ? picture.getAttribute("alt") : states[place].textContent);
  };
  config.knobs.forEach((knob, i) => {
    const changed = (k) => ((choices[i] = k), show());
    if (knob.control === "slider")
      slider(controls, knob.label, [0, sizes[i] - 1, 1], knob.start, (k) => knob.values[k], changed);
    else picker(controls, knob, changed);
  });
  shareOutput(root, config.token);
});
