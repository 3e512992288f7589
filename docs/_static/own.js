// Boxes that scroll sideways say on which sides more is hidden (own.css shows it). Pictures open in
// full size.

function mark(box) {
  const hidden = box.scrollWidth - box.clientWidth;
  box.classList.toggle("more-left", hidden > 1 && box.scrollLeft > 1);
  box.classList.toggle("more-right", hidden > 1 && box.scrollLeft < hidden - 1);
}

function start() {
  const boxes = document.querySelectorAll(".pst-scrollable-table-container, .bd-article pre");
  const watch = new ResizeObserver((changes) => changes.forEach((one) => mark(one.target)));
  window.addEventListener("resize", () => requestAnimationFrame(() => boxes.forEach(mark)));
  for (const box of boxes) {
    box.addEventListener("scroll", () => mark(box), { passive: true });
    watch.observe(box);
    mark(box);
  }
  for (const image of document.querySelectorAll(".bd-article img")) {
    if (!image.closest("a")) {
      const link = document.createElement("a");
      link.href = image.src;
      image.replaceWith(link);
      link.append(image);
    }
    const link = image.closest("a");
    if (link.href === image.src) {
      link.classList.add("large");
      link.title = "Open the picture in full size";
    }
  }
}

if (document.readyState === "loading") {
  document.addEventListener("DOMContentLoaded", start);
} else {
  start();
}
