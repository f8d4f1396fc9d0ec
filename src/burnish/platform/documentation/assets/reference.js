// Draws /openapi.json: one section a tag, one fold a route, with a form that sends it. No library, nothing from elsewhere.
"use strict";

const METHODS = ["get", "post", "put", "patch", "delete"];
let schema;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function resolve(value) {
  if (!value || !value.$ref) return value || {};
  return value.$ref.slice(2).split("/").reduce((found, part) => found[part], schema);
}

function typeName(type) {
  if (!type) return "any";
  if (type.$ref) return type.$ref.split("/").pop();
  for (const key of ["anyOf", "oneOf", "allOf"]) if (type[key]) return [...new Set(type[key].map(typeName))].join(" or ");
  if (type.enum) return type.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (type.const !== undefined) return JSON.stringify(type.const);
  if (type.type === "array") return `list of ${typeName(type.items)}`;
  return type.type || "any";
}

// A body to start from: the route's own example, else its required fields.
function example(content) {
  const given = content.example ?? Object.values(content.examples || {})[0]?.value ?? content.schema?.examples?.[0];
  return given !== undefined ? given : sample(content.schema, 0);
}

function sample(type, depth) {
  const found = resolve(type);
  if (found.examples) return found.examples[0];
  if (found.default !== undefined) return found.default;
  const choice = found.anyOf || found.oneOf || found.allOf;
  if (choice) return sample(choice[0], depth);
  if (found.enum) return found.enum[0];
  if (found.const !== undefined) return found.const;
  if (found.type === "object" && found.properties && depth < 4) {
    const required = new Set(found.required || []);
    return Object.fromEntries(
      Object.entries(found.properties).filter(([name]) => required.has(name)).map(([name, one]) => [name, sample(one, depth + 1)]),
    );
  }
  return { object: {}, array: [], string: "", integer: 0, number: 0, boolean: false }[found.type] ?? null;
}

function fieldTable(type, depth = 0) {
  const found = resolve(type);
  if (!found.properties || depth > 0) return null;
  const required = new Set(found.required || []);
  const rows = Object.entries(found.properties).map(([name, one]) => {
    const field = resolve(one);
    const standard = field.default === undefined || field.default === null ? "" : ` (${JSON.stringify(field.default)})`;
    return make("tr", {}, make("td", {}, make("code", {}, name + (required.has(name) ? " *" : ""))),
      make("td", {}, typeName(one) + standard), make("td", {}, one.description || field.description || ""));
  });
  return make("table", {}, ...rows);
}

function schemaFold(title, content) {
  const type = content?.schema;
  const table = fieldTable(type);
  const fold = make("details", {}, make("summary", {}, `${title}: ${typeName(type)}`));
  fold.append(make("div", { class: "inside" }, table, make("pre", {}, JSON.stringify(resolve(type), null, 2))));
  return fold;
}

function sendForm(method, path, parameters, body) {
  const form = make("form");
  const inputs = parameters.map((one) => {
    const input = make("input", { name: one.name, placeholder: typeName(one.schema) });
    if (one.required) input.required = true;
    if (one.schema?.default !== undefined && one.schema.default !== null) input.placeholder = String(one.schema.default);
    form.append(make("label", {}, `${one.name} (${one.in})`, input));
    return { ...one, input };
  });
  const area = body && body[0].includes("json") ? make("textarea", { "aria-label": "body" }) : null;
  if (area) {
    area.value = JSON.stringify(example(body[1]), null, 2);
    form.append(area);
  }
  const output = make("pre", { hidden: "" });
  form.append(make("button", { type: "submit" }, "Send"), output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.hidden = false;
    output.textContent = "…";
    output.textContent = await send(method, path, inputs, area?.value, body?.[0]);
  });
  return form;
}

async function send(method, path, inputs, body, kind) {
  const query = new URLSearchParams();
  const headers = {};
  for (const { name, in: place, input } of inputs) {
    if (input.value === "") continue;
    if (place === "path") path = path.replace(`{${name}}`, encodeURIComponent(input.value));
    if (place === "query") query.append(name, input.value);
    if (place === "header") headers[name] = input.value;
  }
  if (body !== undefined) headers["content-type"] = kind;
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), 20000); // event streams do not end by themselves
  let text = "";
  try {
    const answer = await fetch(path + (query.size ? `?${query}` : ""), { method: method.toUpperCase(), headers, body, signal: stop.signal });
    text = `${answer.status} ${answer.statusText}\n`;
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, { stream: true });
      if (text.length > 200000) stop.abort();
    }
  } catch (error) {
    if (error.name !== "AbortError") return text + String(error);
    text += "\n… (stopped reading)";
  } finally {
    clearTimeout(timer);
  }
  const [status, ...rest] = text.split("\n");
  try {
    return `${status}\n${JSON.stringify(JSON.parse(rest.join("\n")), null, 2)}`;
  } catch {
    return text;
  }
}

function operationFold(method, path, operation, shared) {
  const parameters = [...shared, ...(operation.parameters || [])].map(resolve);
  const body = Object.entries(resolve(operation.requestBody).content || {})[0];
  const inside = make("div", { class: "inside" });
  if (operation.description) inside.append(...operation.description.split("\n\n").map((text) => make("p", {}, text)));
  if (parameters.length) {
    inside.append(make("table", {}, ...parameters.map((one) => make("tr", {},
      make("td", {}, make("code", {}, one.name + (one.required ? " *" : ""))), make("td", { class: "dim" }, one.in),
      make("td", {}, typeName(one.schema)), make("td", {}, one.description || "")))));
  }
  if (body) inside.append(schemaFold(`Body, ${body[0]}`, body[1]));
  for (const [status, found] of Object.entries(operation.responses || {})) {
    const answer = resolve(found);
    const content = Object.values(answer.content || {})[0];
    inside.append(content ? schemaFold(`${status} ${answer.description || ""}`, content) : make("p", {}, `${status} ${answer.description || ""}`));
  }
  inside.append(sendForm(method, path, parameters, body));
  const fold = make("details", { class: "route" }, make("summary", {},
    make("span", { class: `method ${method}` }, method.toUpperCase()), make("span", { class: "path" }, path),
    make("span", { class: "what" }, operation.summary || "")), inside);
  fold.dataset.text = `${method} ${path} ${operation.summary || ""} ${operation.description || ""}`.toLowerCase();
  return fold;
}

function draw() {
  const sections = new Map();
  for (const [path, item] of Object.entries(schema.paths)) {
    for (const method of METHODS.filter((one) => item[one])) {
      const tag = (item[method].tags || ["other"])[0];
      if (!sections.has(tag)) sections.set(tag, []);
      sections.get(tag).push(operationFold(method, path, item[method], item.parameters || []));
    }
  }
  const described = new Map((schema.tags || []).map((tag) => [tag.name, tag.description]));
  document.querySelector("#routes").replaceChildren(...[...sections].sort(([a], [b]) => a.localeCompare(b)).map(([tag, folds]) =>
    make("section", {}, make("h2", { id: tag }, tag), described.get(tag) ? make("p", { class: "dim" }, described.get(tag)) : null, ...folds)));
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const fold of document.querySelectorAll(".route")) fold.hidden = !words.every((word) => fold.dataset.text.includes(word));
  for (const section of document.querySelectorAll("section")) section.hidden = !section.querySelector(".route:not([hidden])");
}

document.querySelector("#search").addEventListener("input", (event) => filter(event.target.value));
fetch("/openapi.json").then((answer) => answer.json()).then((found) => {
  schema = found;
  document.querySelector("#version").textContent = schema.info.version;
  draw();
}).catch((error) => {
  document.querySelector("#routes").textContent = `openapi.json cannot be read: ${error}`;
});
