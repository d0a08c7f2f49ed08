"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = (text) => { document.getElementById("status").textContent = text; };

  // A page opened from a local file may have no storage.
  const kept = { get: () => { try { return localStorage.getItem("scheme"); } catch { return null; } },
                 set: (value) => { try { localStorage.setItem("scheme", value); } catch { /* not kept */ } } };
  const scheme = document.getElementById("scheme");
  const colour = (value) => { value ? root.dataset.scheme = value : delete root.dataset.scheme; };
  scheme.value = ["light", "dark"].includes(kept.get()) ? kept.get() : "";
  colour(scheme.value);
  scheme.addEventListener("change", () => { colour(scheme.value); kept.set(scheme.value); });

  for (const slider of all(".slider")) {
    const frames = all(".frame", slider), range = slider.querySelector("input"), title = slider.querySelector("output");
    const show = () => {
      frames.forEach((frame, number) => {
        frame.hidden = number !== Number(range.value);
        if (frame.hidden) all("audio, video", frame).forEach((media) => media.pause());
      });
      title.textContent = frames[range.value].dataset.title;
      range.setAttribute("aria-valuetext", title.textContent);
    };
    range.addEventListener("input", show);
    slider.querySelector(".control").hidden = frames.length < 2;
    show();
    if (frames.length < 2) slider.querySelector("h3").append(` (${frames[0].dataset.title})`);
  }

  for (const settings of all(".settings")) {
    const search = settings.querySelector("input[type=search]"), changed = settings.querySelector(".changed");
    const rows = all("tbody tr", settings), count = settings.querySelector(".count");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word))
          || (changed.checked && !row.classList.contains("differs"));
      }
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} keys`;
    };
    search.addEventListener("input", filter);
    changed.addEventListener("change", filter);
    filter();
  }

  for (const chart of all(".chart")) {
    const drawing = chart.querySelector(".drawing"), svg = drawing.querySelector("svg");
    const points = JSON.parse(chart.querySelector(".points").textContent), read = chart.querySelector(".read");
    const boxes = all(".legend input", chart);
    const stops = [...new Set(points.series.flatMap((each) => each.positions.map((at) => at[0])))].sort((a, b) => a - b);
    const nearest = (values, x) => values.reduce((best, value, index) =>
      Math.abs(value - x) < Math.abs(values[best] - x) ? index : best, 0);
    let stop = -1;
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.classList.add("cursor");
    const showValues = (at) => {
      stop = Math.max(0, Math.min(stops.length - 1, at));
      const x = stops[stop], words = [];
      let name = "";
      points.series.forEach((each, number) => {
        if (!boxes[number].checked) return;
        const index = nearest(each.positions.map((position) => position[0]), x);
        if (Math.abs(each.positions[index][0] - x) > 0.5) return;
        name = each.at[index];
        words.push(`${each.name} ${each.values[index]}`);
      });
      for (const [key, value] of [["x1", x], ["x2", x], ["y1", 0], ["y2", svg.viewBox.baseVal.height]]) {
        cursor.setAttribute(key, value);
      }
      svg.append(cursor);
      read.textContent = words.length ? `${points.x} ${name}: ${words.join("; ")}` : "No visible curve has a point here.";
    };
    drawing.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      showValues(nearest(stops, (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width));
    });
    drawing.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: stop - 1, ArrowRight: stop + 1, Home: 0, End: stops.length - 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      showValues(step);
      read.scrollIntoView({ block: "nearest" });
    });
    for (const box of boxes) {
      box.addEventListener("change", () => {
        document.getElementById(box.dataset.curve)?.setAttribute("display", box.checked ? "inline" : "none");
      });
    }
  }

  for (const button of all(".copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        say("Copied");
        button.textContent = "Copied";
      } catch {
        // Without permission to copy, select the text instead.
        getSelection().selectAllChildren(code);
        say("Selected: copy it with the keyboard");
      }
    });
  }

  addEventListener("beforeprint", () => all("details").forEach((each) => { each.open = true; }));
})();
