// The search field shows the ops that hold every word typed; the map is whole without this script.
for (const field of document.querySelectorAll("input[data-map]")) {
  const map = document.getElementById(field.dataset.map);
  const rows = [...map.querySelectorAll("li")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = field.closest(".search").querySelector("output");
  const filter = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every((word) => texts[place].includes(word));
      shown += !row.hidden;
    });
    map.classList.toggle("filtered", words.length > 0);
    for (const region of map.querySelectorAll("details")) region.hidden = ![...region.querySelectorAll("li")].some((row) => !row.hidden);
    count.textContent = `${shown} of ${rows.length} ops`;
  };
  field.closest(".search").hidden = false;
  field.addEventListener("input", filter);
  filter();
}
