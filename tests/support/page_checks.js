/* What the tests ask of a page that is open; each gives a list of what is wrong. */
({
  /* What a screen reader would have no name for, tables without headings, ids that are there twice. */
  unnamed() {
    const named = (node) => node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length || node.querySelector("img[alt]");
    const parts = "button, a, input, [role=img], [role=region], [role=group], nav";
    const twice = (node) => document.querySelectorAll(`#${CSS.escape(node.id)}`).length > 1;
    return [
      ...[...document.querySelectorAll(parts)].filter((node) => !named(node)),
      ...[...document.querySelectorAll("table")].filter((node) => !node.querySelector("th[scope=col]")),
      ...[...document.querySelectorAll("[id]")].filter(twice),
    ].map((node) => node.outerHTML.slice(0, 120));
  },

  /* Texts whose contrast with what is behind them is below 4.5 to 1 (WCAG 2.2, 1.4.3). */
  pale() {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = color;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const linear = (part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const luminance = ([red, green, blue]) => 0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
    const behind = (node) => {
      for (; node; node = node.parentElement) {
        const color = rgba(getComputedStyle(node).backgroundColor);
        if (color[3] === 255) return color;
      }
      return [255, 255, 255];
    };
    const contrast = (node) => {
      const style = getComputedStyle(node);
      const front = rgba(node.closest("svg") ? style.fill : style.color);
      const [lighter, darker] = [luminance(front), luminance(behind(node))].sort((a, b) => b - a);
      return (lighter + 0.05) / (darker + 0.05);
    };
    return [...document.querySelectorAll("body *")]
      .filter((node) => [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim()))
      .filter((node) => node.checkVisibility() && !node.matches(":disabled, .sr, .skip, noscript *"))
      .filter((node) => contrast(node) < 4.5)
      .map((node) => `${node.className} ${node.textContent.slice(0, 30)} ${contrast(node).toFixed(2)}`);
  },
})
