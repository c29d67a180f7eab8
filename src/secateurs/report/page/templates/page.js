"use strict";
(() => {
  const root = document.documentElement;
  const number = new Intl.NumberFormat("en-US");

  // The theme: the system's until the button is used.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = { get() { try { return localStorage.getItem("secateurs-theme"); } catch { return null; } },
                   set(value) { try { localStorage.setItem("secateurs-theme", value); } catch { /* a page opened from disk */ } } };
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = dark() ? "Light" : "Dark"; };
  if (["light", "dark"].includes(stored.get())) root.dataset.theme = stored.get();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; stored.set(root.dataset.theme); label(); });
  system.addEventListener("change", label);
  label();
  button.hidden = false;

  // Sliders: what a figure shows at each of their positions.
  const show = {
    moves(figure, data, at, output) {
      const widths = data.sizes.slice();
      for (const changes of data.changes.slice(0, at)) for (const [i, width] of changes) widths[i] = width;
      figure.querySelectorAll(".row").forEach((row, i) => {
        row.querySelector(".filled").style.width = `${100 * widths[i] / data.most}%`;
        row.querySelector(".now").textContent = number.format(widths[i]);
      });
      const [step, told, share] = at ? data.steps[at - 1] : [0, "the original", "100.0% of the MACs"];
      output.textContent = `step ${number.format(step)} · ${share} · ${told}`;
      const { low, high, start, end } = figure.querySelector(".chart").dataset;
      const x = +start + (step - low) / (high - low) * (end - start);
      const cursor = figure.querySelector(".cursor");
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
    },
    gates(figure, data, at, output) {
      figure.querySelectorAll(".histogram i").forEach((bar, i) => { bar.style.height = `${100 * data.bins[at][i] / data.most}%`; });
      output.textContent = `step ${number.format(data.steps[at])}`;
    },
  };
  for (const figure of document.querySelectorAll("figure[data-kind]")) {
    const data = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const input = figure.querySelector("input");
    const output = figure.querySelector("output");
    input.addEventListener("input", () => show[figure.dataset.kind](figure, data, +input.value, output));
    figure.querySelector(".slider").hidden = false;
  }

  // Sorting: a click on a heading sorts by it, a second one the other way round.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const click = head.querySelector("button");
      click.disabled = false;
      click.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const numeric = head.classList.contains("n");
        const key = (row) => { const value = row.cells[column].dataset.key; return value === undefined ? null : numeric ? +value : value; };
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const [p, q] = [key(a), key(b)];
          if (p === null || q === null) return (p === null) - (q === null);
          return (up ? 1 : -1) * (numeric ? p - q : p.localeCompare(q));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // A link to a run opens it; a printed page has everything open.
  const open = () => { const run = location.hash && document.getElementById(location.hash.slice(1)); if (run && run.matches("details")) run.open = true; };
  addEventListener("hashchange", open);
  open();
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));

  for (const copy of document.querySelectorAll(".copy")) {
    const code = copy.closest("section").querySelector("pre code");
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 2000);
    });
  }
})();
