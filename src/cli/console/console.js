'use strict';
// On a phone, each row of a table is a card: its values get the names of their columns.
const nameCells = (parent) => {
  for (const table of parent.querySelectorAll('table')) {
    const names = [...(table.tHead?.rows[0].cells ?? [])].map((head) => head.textContent);
    for (const row of table.tBodies[0].rows) {
      for (const cell of row.cells) if (names[cell.cellIndex]) cell.dataset.label = names[cell.cellIndex];
    }
  }
};
nameCells(document);

// Refreshes what changes by itself: an element with data-live is replaced by what that path answers, every data-every seconds, while
// the page is visible. Without the script, reloading the page does the same.
for (const element of document.querySelectorAll('[data-live]')) {
  const every = Number(element.dataset.every) * 1000;
  let shown = '';
  const refresh = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(element.dataset.live, { headers: { accept: 'text/html' }, redirect: 'error' });
        if (!answer.ok) throw new Error(answer.statusText);
        const text = await answer.text();
        // The server escapes every value, as on the page itself. Whoever is about to follow a link keeps it.
        if (text !== shown && !element.contains(document.activeElement)) {
          element.innerHTML = text;
          nameCells(element);
          shown = text;
        }
        element.classList.remove('stale');
        if (answer.headers.get('x-live') === 'ended') return;
      } catch {
        element.classList.add('stale');
      }
    }
    setTimeout(refresh, every);
  };
  setTimeout(refresh, every);
}
