// Puts the text of a chosen file into the field that <input type="file" data-fills="FIELD"> names, and its name into
// that of data-names. The file itself is not sent.
"use strict";

document.addEventListener("change", async (event) => {
  const chosen = event.target;
  if (!(chosen instanceof HTMLInputElement) || !chosen.dataset.fills || !chosen.files.length) return;
  document.getElementById(chosen.dataset.fills).value = await chosen.files[0].text();
  if (chosen.dataset.names) document.getElementById(chosen.dataset.names).value = chosen.files[0].name;
  document.getElementById("status").textContent = `The text of ${chosen.files[0].name} was read.`;
});
