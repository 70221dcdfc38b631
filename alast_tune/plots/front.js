// Rings the trial under the pointer in every view, and lights its row in the table; a click copies its MLflow run id.
(function () {
  const plot = document.getElementById("front");
  if (!plot || !window.Plotly) return;
  const values = $values, panels = $panels;  // trial -> [accuracy, FLOPs, memory]; objectives on each panel's axes
  const runs = JSON.parse(document.getElementById("runs").textContent);  // trial -> MLflow run id
  const rings = plot.data.flatMap((trace, index) => trace.name === "pointer" ? [index] : []);
  const rows = [...document.querySelectorAll("tr[data-trial]")];
  const picked = document.getElementById("picked");
  let pointed = null, timer = null;

  function point(trial) {
    if (trial === pointed) return;
    pointed = trial;
    const at = trial === null ? [null, null, null] : values[trial];
    const [flat, solid] = [rings.slice(0, -1), rings.slice(-1)];
    Plotly.restyle(plot, {x: panels.map(([x]) => [at[x]]), y: panels.map(([, y]) => [at[y]])}, flat);
    Plotly.restyle(plot, {x: [[at[1]]], y: [[at[2]]], z: [[at[0]]]}, solid);
    rows.forEach(row => row.classList.toggle("pointed", row.dataset.trial === trial));
  }

  // MLflow shows the page in a sandboxed frame, where the clipboard may be denied; the older way often is not.
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

  async function pick(trial) {
    const run = runs[trial], label = document.createElement("b");
    label.textContent = "trial " + trial;
    clearTimeout(timer);
    if (!run) {
      picked.replaceChildren(label, " has no MLflow run here");
      return;
    }
    const id = document.createElement("code");
    id.textContent = run;
    picked.replaceChildren(label, ", MLflow run ", id);
    if (await copy(run)) {
      picked.append(" copied");
      picked.classList.add("done");
      timer = setTimeout(() => picked.classList.remove("done"), 2000);
    } else {
      getSelection().selectAllChildren(id);
      picked.append(" selected: Ctrl+C copies it");
    }
  }

  plot.on("plotly_hover", event => { if (event.points[0].customdata) point(event.points[0].customdata); });
  plot.on("plotly_unhover", () => point(null));
  plot.on("plotly_click", event => { if (event.points[0].customdata) pick(event.points[0].customdata); });
  rows.forEach(row => {
    row.addEventListener("mouseenter", () => point(row.dataset.trial));
    row.addEventListener("mouseleave", () => point(null));
    row.addEventListener("click", () => pick(row.dataset.trial));
    row.querySelector("code").textContent = runs[row.dataset.trial] || "-";
  });
})();
