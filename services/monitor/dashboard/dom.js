/* Elements, and bringing what is on the page in line with what it should be.
 *
 * `h` and `svg` make elements. Whatever comes from the log goes in as a text node or through setAttribute, never as
 * markup: nothing in this dashboard parses markup. `morph` changes a tree into another in place, so that focus, the
 * selection, scroll positions and open details outlive a refresh. Elements have no listeners of their own: the page
 * listens once, and `data-action` says what an element does.
 *
 * An element made with `own` paints its content itself (a chart: it has to know its width); morph leaves it alone.
 */

const SVG = "http://www.w3.org/2000/svg";
const SPEC = Symbol("spec");

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export const h = (tag, attributes, ...children) => made(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => made(document.createElementNS(SVG, tag), attributes, children);

/** An element whose content `paint(element, spec)` makes, now and whenever the spec or the width is another. */
export function own(attributes, paint, spec) {
  const node = h("div", { ...attributes, "data-own": true });
  node[SPEC] = { paint, spec };
  return node;
}

export function paintAll(root) {
  for (const node of root.querySelectorAll("[data-own]")) node[SPEC].paint(node, node[SPEC].spec);
}

const sameKind = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null);

/** Make the children of `target` those of `wanted`. */
export function morph(target, wanted) {
  let next = target.firstChild;
  for (const child of [...wanted.childNodes]) {
    const match = next && sameKind(next, child) ? next : keyed(target, next, child);
    if (!match) {
      target.insertBefore(child, next);
      continue;
    }
    if (match === next) next = next.nextSibling;
    else target.insertBefore(match, next);
    update(match, child);
  }
  while (next) {
    const gone = next;
    next = next.nextSibling;
    gone.remove();
  }
}

function keyed(target, from, child) {
  if (keyOf(child) === null) return null;
  for (let node = from; node; node = node.nextSibling) if (sameKind(node, child)) return node;
  return null;
}

function update(node, wanted) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  for (const { name } of [...node.attributes]) {
    // Whether details are open, and what is typed into a field, is the reader's.
    if (!wanted.hasAttribute(name) && !(name === "open" && node.nodeName === "DETAILS")) node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  if (node.hasAttribute("data-own")) node[SPEC] = wanted[SPEC];
  else morph(node, wanted);
}
