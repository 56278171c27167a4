for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, place) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[place].dataset.value ?? row.cells[place].textContent;
    const missing = text => text === "nan" || text === "–" || text === "None";
    [...body.rows].sort((a, b) => {
      const [left, right] = [key(a), key(b)];
      if (missing(left) || missing(right)) return missing(left) - missing(right);  // always last
      const [x, y] = [left, right].map(text => text === "inf" ? Infinity : Number(text));
      const order = Number.isNaN(x) || Number.isNaN(y) ? left.localeCompare(right) : x === y ? 0 : x - y;
      return up ? order : -order;
    }).forEach(row => body.append(row));
  }));
}

const claims = [...document.querySelectorAll("details.claim")];
const every = document.querySelector("button.every");
const name = () => { every.textContent = claims.every(claim => claim.open) ? "Close all claims" : "Open all claims"; };
every.addEventListener("click", () => {
  const open = !claims.every(claim => claim.open);
  claims.forEach(claim => { claim.open = open; });
});
claims.forEach(claim => claim.addEventListener("toggle", name));
let shut = [];
addEventListener("beforeprint", () => {
  shut = claims.filter(claim => !claim.open);
  shut.forEach(claim => { claim.open = true; });
});
addEventListener("afterprint", () => shut.forEach(claim => { claim.open = false; }));

// A box that scrolls can be reached and scrolled with the keyboard; another one is no stop for it.
const boxes = new ResizeObserver(entries => entries.forEach(({target}) => {
  const wide = target.scrollWidth > target.clientWidth;
  target.classList.toggle("wide", wide);
  if (wide) target.tabIndex = 0;
  else target.removeAttribute("tabindex");
}));
document.querySelectorAll(".scroll").forEach(box => boxes.observe(box));

const dialog = document.querySelector("dialog.zoomed");
const large = dialog.appendChild(new Image());
for (const button of document.querySelectorAll("button.zoom")) {
  button.addEventListener("click", () => {
    const shown = button.querySelector("img");
    large.src = shown.src;
    large.alt = shown.alt;
    large.width = shown.naturalWidth;
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
