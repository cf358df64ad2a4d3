// One tick for all rows of a table that are shown: `data-ticks` names their checkboxes.

function rows(all) {
  return [...all.closest("table").querySelectorAll(`[name="${all.dataset.ticks}"]`)];
}

function settle(all) {
  const ticked = rows(all).filter((each) => each.checked).length;
  all.checked = ticked > 0 && ticked === rows(all).length;
  all.indeterminate = ticked > 0 && !all.checked;
}

document.addEventListener("change", ({ target }) => {
  if (target.dataset.ticks) {
    for (const each of rows(target)) each.checked = target.checked;
  } else {
    const all = target.closest("table")?.querySelector("[data-ticks]");
    if (all) settle(all);
  }
});
document.addEventListener("shown", () => {
  for (const all of document.querySelectorAll("[data-ticks]")) settle(all);
});
