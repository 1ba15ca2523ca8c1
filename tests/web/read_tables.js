() =>
  [...document.querySelectorAll("table")]
    .filter((table) => table.checkVisibility())
    .map((table) => {
      const place = table.closest(".table-scroll");
      const columns = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
      const asCards = !table.tHead.checkVisibility();
      const unreadable = [];
      const reached = place.getBoundingClientRect().left - place.scrollLeft;
      if (place.scrollWidth > place.clientWidth && place.tabIndex < 0) unreadable.push("no key scrolls it");
      if (asCards && place.scrollWidth > place.clientWidth) unreadable.push("its cards are wider than the page");
      for (const row of table.querySelectorAll("tbody tr")) {
        const cells = [...row.cells];
        const spanned = cells.reduce((sum, cell) => sum + cell.colSpan, 0);
        if (spanned !== columns.length) unreadable.push(`a row has ${spanned} of ${columns.length} columns`);
        cells.forEach((cell, i) => {
          const column = `${columns[i]}: ${cell.textContent.trim()}`;
          const { left, width, height } = cell.getBoundingClientRect();
          if (!cell.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || width < 1 || height < 1) unreadable.push(`${column} is hidden`);
          if (left - reached + width > place.scrollWidth + 1) unreadable.push(`${column} can't be scrolled to`);
          if (asCards && cell.scrollWidth > cell.clientWidth + 1) unreadable.push(`${column} runs into its neighbour`);
          if (asCards && cell.matches(".num") && !(cell.dataset.label && columns[i].startsWith(cell.dataset.label))) unreadable.push(`${column} is a figure without a name`);
          for (const part of cell.querySelectorAll("*")) if (getComputedStyle(part).textOverflow === "ellipsis") unreadable.push(`${column} is cut short`);
        });
      }
      return { name: place.getAttribute("aria-label"), unreadable };
    })
