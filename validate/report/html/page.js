// Each search field shows the rows of its table that hold every word typed; the page is whole without this script.
for (const field of document.querySelectorAll("input[data-table]")) {
  const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = field.closest(".search").querySelector("output");
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every((word) => texts[place].includes(word));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} ops`;
  };
  field.closest(".search").hidden = false;
  field.addEventListener("input", filter);
  filter();
}
