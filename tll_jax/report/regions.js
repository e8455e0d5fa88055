// A place table over two pictures: `boards` are the two elements with a button for each place, `words` the element that
// says what is pointed at. `facts.strongest` are pairs of places to outline at the start.
function placeTable(boards, words, facts) {
  const cells = boards.map(board => [...board.querySelectorAll("button")]);
  const strongest = facts.strongest ?? [];
  let pinned = null;

  // What cell `at` of one side adds with every cell of the other.
  const row = (side, at) => side === 0 ? facts.pairs[at] : facts.pairs.map(one => one[at]);
  const sum = values => values.reduce((total, value) => total + value, 0);
  const place = (side, at) => `row ${Math.floor(at / facts.columns) + 1}, column ${at % facts.columns + 1} of the ` +
    `${["left", "right"][side]} picture`;
  const signed = value => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

  function paint(side, values) {
    const most = Math.max(...values.map(Math.abs), 1e-12);
    cells[side].forEach((cell, at) => {
      const share = values[at] / most;
      cell.style.setProperty("--cover", ((facts.cover ?? 0.85) * Math.abs(share)).toFixed(3));
      cell.classList.toggle("against", share < 0);
      cell.title = signed(values[at]);
    });
  }

  function mark(side, at) {
    cells.flat().forEach(cell => { cell.classList.remove("query", "best"); delete cell.dataset.order; });
    if (at !== null) cells[side][at].classList.add("query");
  }

  function overview() {
    [0, 1].forEach(side => paint(side, cells[side].map((_, at) => sum(row(side, at)))));
    mark(0, null);
    strongest.forEach((ends, number) => ends.forEach((at, side) => {
      const order = cells[side][at].dataset;
      order.order = order.order ? `${order.order} ${number + 1}` : number + 1;
    }));
    words.textContent = `All places together: ${signed(facts.sum)} of the cosine ${facts.cosine.toFixed(3)}` +
      (Math.abs(facts.sum - facts.cosine) < 0.001 ? "." : `; ${facts.rest ?? "the head's bias adds"} the rest.`) +
      (strongest.length ? " Equal numbers mark the pairs of places that add most." : "") +
      ` Point at a place, or go to one with ${facts.keys ?? "Tab"} and the arrow keys.`;
  }

  function show(side, at) {
    const values = row(side, at), best = values.indexOf(Math.max(...values));
    paint(1 - side, values);
    paint(side, cells[side].map((_, other) => other === at ? 1 : 0));
    mark(side, at);
    cells[1 - side][best].classList.add("best");
    words.textContent = `${place(side, at)} adds ${signed(sum(values))} to the cosine ${facts.cosine.toFixed(3)}; ` +
      `most with ${place(1 - side, best)}: ${signed(values[best])}.${pinned ? " Escape releases it." : ""}`;
  }

  function move(side, at, key) {
    const columns = facts.columns, column = at % columns;
    const next = { ArrowLeft: column > 0 ? at - 1 : at, ArrowRight: column < columns - 1 ? at + 1 : at,
      ArrowUp: at - columns, ArrowDown: at + columns }[key];
    const target = cells[side][next];
    if (!target) return;
    cells[side].forEach(cell => { cell.tabIndex = -1; });
    target.tabIndex = 0;
    target.focus();
  }

  cells.forEach((buttons, side) => buttons.forEach((cell, at) => {
    cell.tabIndex = at === 0 ? 0 : -1;
    cell.addEventListener("pointerenter", () => { if (!pinned) show(side, at); });
    cell.addEventListener("focus", () => { if (!pinned) show(side, at); });
    cell.addEventListener("click", () => {
      const isSame = pinned && pinned.side === side && pinned.at === at;
      pinned = isSame ? null : { side, at };
      cells.flat().forEach(one => one.setAttribute("aria-pressed", "false"));
      cell.setAttribute("aria-pressed", String(!isSame));
      show(side, at);
    });
    cell.addEventListener("keydown", event => {
      if (event.key.startsWith("Arrow")) { event.preventDefault(); move(side, at, event.key); }
    });
  }));
  boards.forEach(board => board.addEventListener("pointerleave", () => { if (!pinned) overview(); }));
  boards.forEach(board => board.addEventListener("focusout", event => {
    if (!pinned && !boards.some(one => one.contains(event.relatedTarget))) overview();
  }));
  document.addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    pinned = null;
    cells.flat().forEach(one => one.setAttribute("aria-pressed", "false"));
    overview();
  });
  overview();
}
