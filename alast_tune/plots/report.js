// Switches the front's axis and range; a click on a trial shows the command that promotes the trial, and copies it.
(function () {
  const plot = document.getElementById("front");
  if (!plot || !window.Plotly) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const ring = plot.data.length - 1;
  const whole = [...plot.layout.yaxis.range];
  const picked = document.getElementById("picked");
  const rows = [...document.querySelectorAll("tr[data-trial]")];
  let view = data.views[0], trial = null, timer = null;

  function command(name) {
    return [data.promote[0], name, data.promote[1]].join(" ");
  }

  function press(buttons, pressed) {
    buttons.forEach(button => button.setAttribute("aria-pressed", button === pressed));
  }

  function draw() {
    const at = data.trials.indexOf(trial);
    const x = [...view.x, [at < 0 ? null : view.all[at]]], y = [...view.y, [at < 0 ? null : data.accuracy[at]]];
    Plotly.update(plot, {x, y}, {"xaxis.title.text": view.title, "xaxis.autorange": true});
  }

  const axes = [...document.querySelectorAll("button[data-axis]")];
  axes.forEach((button, index) => button.addEventListener("click", () => {
    view = data.views[index];
    press(axes, button);
    draw();
  }));
  const ranges = [...document.querySelectorAll("button[data-range]")];
  ranges.forEach(button => button.addEventListener("click", () => {
    press(ranges, button);
    const low = button.dataset.range ? Number(button.dataset.range) : whole[0];
    Plotly.relayout(plot, {"yaxis.range": [low, whole[1]]});
  }));

  // In MLflow's sandboxed frame the clipboard may be denied; the older way often is not.
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const field = document.createElement("textarea");
      field.value = text;
      field.style.cssText = "position: fixed; opacity: 0";
      document.body.append(field);
      field.select();
      const done = document.execCommand("copy");
      field.remove();
      return done;
    }
  }

  async function give(text, words, place) {
    clearTimeout(timer);
    place.classList.remove("done");
    const code = document.createElement("code");
    code.textContent = words;
    place.replaceChildren(text, code);
    if (await copy(words)) {
      place.append(" copied");
      place.classList.add("done");
      timer = setTimeout(() => place.classList.remove("done"), 2000);
    } else {
      getSelection().selectAllChildren(code);
      place.append(" selected: Ctrl+C copies it");
    }
  }

  function pick(name) {
    trial = name;
    draw();
    rows.forEach(row => row.classList.toggle("picked", row.dataset.trial === name));
    if (data.members.includes(name)) give(`trial ${name}: `, command(name), picked);
    else picked.replaceChildren(`trial ${name} is dominated: only members of the front are promoted`);
  }

  plot.on("plotly_click", event => { if (event.points[0].customdata) pick(event.points[0].customdata); });
  rows.forEach(row => row.addEventListener("click", () => pick(row.dataset.trial)));
  document.querySelectorAll(".card[data-trial]").forEach(card => card.addEventListener("click", () => {
    pick(card.dataset.trial);
    const code = card.querySelector(".command");
    give("", command(card.dataset.trial), code);
  }));
})();
