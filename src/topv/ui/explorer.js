const cellsOf = grid => Array.from(grid.querySelectorAll("[data-cell]"));

function goTo(grid, place) {
  const cells = cellsOf(grid);
  if (place < 0 || place >= cells.length) return;
  for (const cell of cells) cell.tabIndex = -1;
  cells[place].tabIndex = 0;
  cells[place].focus();
}

function choose(grid, cell) {
  for (const other of cellsOf(grid)) other.setAttribute("aria-selected", String(other === cell));
  trigger("pick", { cell: Number(cell.dataset.cell) });
}

element.addEventListener("click", event => {
  const cell = event.target.closest("[data-cell]");
  if (!cell) return;
  const grid = cell.closest("[role=grid]");
  goTo(grid, Number(cell.dataset.cell));
  choose(grid, cell);
});

element.addEventListener("keydown", event => {
  const cell = event.target.closest("[data-cell]");
  if (!cell) return;
  const grid = cell.closest("[role=grid]");
  const columns = Number(grid.dataset.columns);
  const place = Number(cell.dataset.cell);
  const row = place - (place % columns);
  const steps = {
    ArrowLeft: place % columns ? place - 1 : place,
    ArrowRight: (place + 1) % columns ? place + 1 : place,
    ArrowUp: place - columns,
    ArrowDown: place + columns,
    Home: row,
    End: row + columns - 1,
  };
  if (event.key === "Enter" || event.key === " ") choose(grid, cell);
  else if (event.key in steps) goTo(grid, steps[event.key]);
  else return;
  event.preventDefault();
});
