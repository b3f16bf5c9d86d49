// The page that runs HSNet in the reader's browser. Everything it needs lies beside this file, written by
// `python -m hsnet.browser`: scripts that hold files in base64, because a page opened from a folder (file://) may load
// scripts but not files. They are loaded when an answer is first wanted. Nothing leaves the browser.
(() => {
  "use strict";
  let side; // of the network's squares
  const LONGEST = 512; // pixels of a picture's longer side as it is shown and painted on
  const folder = new URL(".", document.currentScript.src).href;
  const box = document.getElementById("hsnet-try");
  const files = (globalThis.hsnetFiles = {}); // base64 by name
  const loads = {};

  function script(name) {
    loads[name] ??= new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = folder + name;
      element.onload = resolve;
      element.onerror = () => {
        delete loads[name];
        reject(new Error(`${name} could not be loaded`));
      };
      document.head.append(element);
    });
    return loads[name];
  }

  async function bytes(name) {
    await script(name + ".js");
    const found = await fetch("data:application/octet-stream;base64," + files[name]);
    return found.arrayBuffer();
  }

  // WebAssembly with vector instructions, which the runtime is built with: the smallest module that uses one.
  const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    box.innerHTML =
      "<p role='alert'>This browser cannot run WebAssembly with vector instructions, which the network needs. " +
      "A current Chrome, Edge, Firefox or Safari can.</p>";
    return;
  }

  box.innerHTML = `
    <p class="tools">
      <label>Pictures <select data-part="episode"></select></label>
      <span data-part="own" hidden>
        <label>support <input type="file" accept="image/*" data-part="support-file"></label>
        <label>query <input type="file" accept="image/*" data-part="query-file"></label>
      </span>
    </p>
    <div class="pictures">
      <figure>
        <figcaption>support: paint the object</figcaption>
        <canvas data-part="support" tabindex="0" role="application"
          aria-label="Support. Paint the object with mouse or finger; or move the brush with the arrow keys and press space to paint."></canvas>
      </figure>
      <figure>
        <figcaption data-part="query-caption">query</figcaption>
        <canvas data-part="query" role="img" aria-label="Query"></canvas>
      </figure>
    </div>
    <p class="tools">
      <label><input type="radio" name="hsnet-tool" value="paint" checked> paint</label>
      <label><input type="radio" name="hsnet-tool" value="erase"> erase</label>
      <label>brush <input type="range" min="2" max="60" value="16" data-part="brush"></label>
      <button type="button" data-part="clear">clear</button>
      <button type="button" data-part="given">the true mask</button>
    </p>
    <p class="tools">
      <button type="button" data-part="run">find it in the query</button>
      <label data-part="device-label" hidden>compute on <select data-part="device">
        <option value="wasm">the processor</option><option value="webgpu">the graphics card (WebGPU)</option></select></label>
    </p>
    <p data-part="status" role="status" aria-live="polite"></p>
    <p class="small" data-part="attribution"></p>`;
  const part = Object.fromEntries([...box.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
  const say = (text) => (part.status.textContent = text);

  // One picture: `canvas` holds its pixels, at most LONGEST a side; `features` are kept until it is replaced.
  part.query.getContext("2d", { willReadFrequently: true });
  const empty = () => ({ canvas: null, features: null });
  let support = empty();
  let query = empty();
  let mask = null; // a canvas of the support's size, opaque where painted
  let given = null; // the true mask of a built-in episode
  let brush = { x: 0, y: 0, shown: false };
  let seconds = {};

  function canvasOf(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    canvas.getContext("2d", { willReadFrequently: true }); // later calls return this context
    return canvas;
  }

  async function picture(source) {
    const image = new Image();
    image.src = source;
    await image.decode();
    const scale = Math.min(1, LONGEST / Math.max(image.naturalWidth, image.naturalHeight));
    const canvas = canvasOf(Math.max(1, Math.round(image.naturalWidth * scale)), Math.max(1, Math.round(image.naturalHeight * scale)));
    const pen = canvas.getContext("2d");
    pen.fillStyle = "rgb(127, 127, 127)"; // behind what is transparent
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return { canvas, features: null };
  }

  function pixels(canvas, width = canvas.width, height = canvas.height) {
    if (canvas.width !== width || canvas.height !== height) {
      const squashed = canvasOf(width, height);
      const pen = squashed.getContext("2d");
      pen.imageSmoothingQuality = "high";
      pen.drawImage(canvas, 0, 0, width, height);
      canvas = squashed;
    }
    return canvas.getContext("2d").getImageData(0, 0, width, height).data;
  }

  function show(canvas, source) {
    canvas.width = source.width;
    canvas.height = source.height;
    canvas.getContext("2d").drawImage(source, 0, 0);
  }

  function drawSupport() {
    if (!support.canvas) return;
    show(part.support, support.canvas);
    const pen = part.support.getContext("2d");
    const tinted = canvasOf(mask.width, mask.height);
    const tint = tinted.getContext("2d");
    tint.drawImage(mask, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = "rgb(255, 64, 0)";
    tint.fillRect(0, 0, mask.width, mask.height);
    pen.globalAlpha = 0.55;
    pen.drawImage(tinted, 0, 0);
    pen.globalAlpha = 1;
    if (brush.shown) {
      for (const [colour, width] of [["white", 3], ["black", 1.5]]) {
        pen.strokeStyle = colour;
        pen.lineWidth = width;
        pen.beginPath();
        pen.arc(brush.x, brush.y, radius(), 0, 2 * Math.PI);
        pen.stroke();
      }
    }
  }

  function setSupport(found, truth) {
    support = found;
    mask = canvasOf(found.canvas.width, found.canvas.height);
    given = truth;
    part.given.hidden = !truth;
    brush = { x: mask.width / 2, y: mask.height / 2, shown: false };
    drawSupport();
  }

  function setQuery(found) {
    query = found;
    show(part.query, found.canvas);
    part["query-caption"].textContent = "query";
    part.query.setAttribute("aria-label", "Query");
  }

  // Painting

  const radius = () => (+part.brush.value * Math.max(mask.width, mask.height)) / 512;

  function stroke(from, to) {
    const pen = mask.getContext("2d");
    pen.globalCompositeOperation = box.querySelector("[name=hsnet-tool]:checked").value === "erase" ? "destination-out" : "source-over";
    pen.lineCap = "round";
    pen.lineWidth = 2 * radius();
    pen.beginPath();
    pen.moveTo(from.x, from.y);
    pen.lineTo(to.x, to.y);
    pen.stroke();
    pen.beginPath(); // a line without length draws nothing
    pen.arc(to.x, to.y, radius(), 0, 2 * Math.PI);
    pen.fill();
    drawSupport();
  }

  function place(event) {
    const frame = part.support.getBoundingClientRect();
    return {
      x: ((event.clientX - frame.left) * part.support.width) / frame.width,
      y: ((event.clientY - frame.top) * part.support.height) / frame.height,
      shown: true,
    };
  }

  part.support.addEventListener("pointerdown", (event) => {
    if (!mask) return;
    part.support.setPointerCapture(event.pointerId);
    brush = place(event);
    stroke(brush, brush);
    event.preventDefault();
    part.support.focus({ preventScroll: true });
  });
  part.support.addEventListener("pointermove", (event) => {
    if (!mask) return;
    const from = brush;
    brush = place(event);
    if (event.buttons & 1) stroke(from, brush);
    else drawSupport();
  });
  const hideBrush = () => {
    brush.shown = false;
    drawSupport();
  };
  part.support.addEventListener("pointerleave", hideBrush);
  part.support.addEventListener("blur", hideBrush);
  part.support.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };
    if (!mask || !(event.key in steps)) return;
    event.preventDefault();
    const [x, y] = steps[event.key].map((n) => n * Math.max(2, radius() / 2));
    brush = { x: Math.min(Math.max(brush.x + x, 0), mask.width), y: Math.min(Math.max(brush.y + y, 0), mask.height), shown: true };
    if (event.key === " ") stroke(brush, brush);
    else drawSupport();
  });
  part.brush.addEventListener("input", drawSupport);
  part.clear.addEventListener("click", () => {
    if (!mask) return;
    mask.width = mask.width; // empties it
    drawSupport();
  });
  part.given.addEventListener("click", () => {
    mask.width = mask.width;
    mask.getContext("2d").drawImage(given, 0, 0);
    drawSupport();
  });

  // The painted mask as the network sees it: nearest, rounding down, as `hsnet.episodes.resize_mask`.
  function squashedMask() {
    const values = pixels(mask);
    const small = new Float32Array(side * side);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        const place = Math.floor((y * mask.height) / side) * mask.width + Math.floor((x * mask.width) / side);
        small[y * side + x] = values[4 * place + 3] > 127 ? 1 : 0;
      }
    return small;
  }

  // The network

  let network = null; // promise of { features, match, device }

  async function load(device) {
    const start = performance.now();
    const name = device === "webgpu" ? "ort-wasm-simd-threaded.asyncify" : "ort-wasm-simd-threaded";
    const [glue, binary, features, match] = await Promise.all([
      bytes(name + ".mjs"),
      bytes(name + ".wasm"),
      bytes("features.onnx"),
      bytes("match.onnx"),
      script(device === "webgpu" ? "ort.webgpu.min.js" : "ort.wasm.min.js"),
    ]);
    const ort = globalThis.ort;
    ort.env.wasm.numThreads = 1; // more would need a server that isolates the page
    ort.env.wasm.wasmBinary = binary;
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([glue], { type: "text/javascript" })) };
    const options = { executionProviders: [device], graphOptimizationLevel: "all" };
    const sessions = {
      device,
      ort,
      features: await ort.InferenceSession.create(features, options),
      match: await ort.InferenceSession.create(match, options),
    };
    for (const key of Object.keys(files)) delete files[key]; // the text is not needed again
    for (const key of Object.keys(loads)) if (/\.(mjs|wasm|onnx)\.js$/.test(key)) delete loads[key];
    seconds.load = (performance.now() - start) / 1000;
    return sessions;
  }

  async function featuresOf(net, picture) {
    if (picture.features?.device === net.device) return picture.features.values;
    const rgba = pixels(picture.canvas, side, side);
    const planes = new Uint8Array(3 * side * side);
    for (let i = 0; i < side * side; i++) for (let c = 0; c < 3; c++) planes[c * side * side + i] = rgba[4 * i + c];
    const found = await net.features.run({ picture: new net.ort.Tensor("uint8", planes, [1, 3, side, side]) });
    picture.features = { device: net.device, values: Object.values(found) };
    return picture.features.values;
  }

  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

  async function answer() {
    if (!support.canvas || !query.canvas) return say("Choose a support and a query first.");
    const small = squashedMask();
    if (!small.some((v) => v)) return say("Paint the object in the support first.");
    part.run.disabled = true;
    const start = performance.now();
    try {
      say(network ? "computing …" : "loading the network (once), then computing …");
      await drawn();
      const device = part.device.value;
      network ??= load(device);
      let net;
      try {
        net = await network;
      } catch (error) {
        network = null;
        if (device !== "webgpu") throw error;
        part.device.value = "wasm"; // the graphics card could not: the processor can
        network = load("wasm");
        net = await network;
      }
      const inputs = { mask: new net.ort.Tensor("float32", small, [1, side, side]) };
      for (const [name, picture] of [["support", support], ["query", query]])
        (await featuresOf(net, picture)).forEach((tensor, i) => (inputs[`${name}-${i}`] = tensor));
      const found = await net.match.run(inputs);
      const probability = found.probability.data;
      drawAnswer(probability);
      seconds.answer = (performance.now() - start) / 1000;
      globalThis.hsnetTry = { probability: Array.from(probability), mask: Array.from(small), seconds: { ...seconds }, device: net.device };
      say(`${seconds.answer.toFixed(1)} seconds on ${net.device === "webgpu" ? "the graphics card" : "the processor"}.`);
    } catch (error) {
      network = null;
      say(`That did not work: ${error.message}`);
      console.error(error);
    } finally {
      part.run.disabled = false;
    }
  }

  // As `hsnet.figures.overlay`: the object in its colours with an outline, everything else in pale grey.
  function drawAnswer(probability) {
    show(part.query, query.canvas);
    const { width, height } = part.query;
    const pen = part.query.getContext("2d");
    const shown = pen.getImageData(0, 0, width, height);
    const inside = new Uint8Array(width * height);
    let count = 0;
    for (let y = 0; y < height; y++) {
      const v = height > 1 ? (y * (side - 1)) / (height - 1) : 0; // corners on corners
      const top = Math.min(Math.floor(v), side - 2);
      for (let x = 0; x < width; x++) {
        const u = width > 1 ? (x * (side - 1)) / (width - 1) : 0;
        const left = Math.min(Math.floor(u), side - 2);
        const at = (row, column) => probability[(top + row) * side + left + column];
        const upper = at(0, 0) + (u - left) * (at(0, 1) - at(0, 0));
        const lower = at(1, 0) + (u - left) * (at(1, 1) - at(1, 0));
        if (upper + (v - top) * (lower - upper) > 0.5) count += inside[y * width + x] = 1;
      }
    }
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const i = y * width + x;
        if (inside[i]) {
          const border =
            (x > 0 && !inside[i - 1]) || (x < width - 1 && !inside[i + 1]) || (y > 0 && !inside[i - width]) || (y < height - 1 && !inside[i + width]);
          if (border) shown.data.set([255, 64, 0], 4 * i);
        } else {
          const grey = 0.15 * (shown.data[4 * i] + shown.data[4 * i + 1] + shown.data[4 * i + 2]) + 110;
          shown.data.set([grey, grey, grey], 4 * i);
        }
      }
    pen.putImageData(shown, 0, 0);
    const share = Math.round((100 * count) / inside.length);
    const words = count ? `found: ${share} % of the picture` : "nothing found";
    part["query-caption"].textContent = `query, ${words}`;
    part.query.setAttribute("aria-label", `Query, ${words}`);
  }

  part.run.addEventListener("click", answer);
  part.device.addEventListener("change", () => (network = null));

  // Pictures

  let chosen = 0;
  async function choose() {
    const own = part.episode.value === "own";
    const turn = ++chosen;
    part.own.hidden = !own;
    if (own) return;
    const episode = globalThis.hsnetEpisodes.episodes[+part.episode.value];
    const [first, truth, second] = await Promise.all([picture(episode.support), picture(episode.mask), picture(episode.query)]);
    if (turn !== chosen) return; // another one was chosen meanwhile
    const marked = truth.canvas.getContext("2d").getImageData(0, 0, truth.canvas.width, truth.canvas.height);
    for (let i = 0; i < marked.data.length; i += 4) marked.data[i + 3] = marked.data[i] > 127 ? 255 : 0;
    truth.canvas.getContext("2d").putImageData(marked, 0, 0);
    setSupport(first, truth.canvas);
    if (query.source !== episode.query) setQuery({ ...second, source: episode.query }); // else its features are kept
    else setQuery(query);
    box.dataset.shown = part.episode.value;
    say("Paint over the object in the support, then let the network find it in the query.");
  }
  part.episode.addEventListener("change", choose);

  for (const [name, set] of [["support-file", (p) => setSupport(p, null)], ["query-file", setQuery]])
    part[name].addEventListener("change", async () => {
      const file = part[name].files[0];
      if (!file) return;
      const address = URL.createObjectURL(file);
      try {
        set(await picture(address));
        say("The picture stays in this browser.");
      } catch {
        say(`${file.name} is not a picture that this browser can read.`);
      } finally {
        URL.revokeObjectURL(address);
      }
    });

  async function begin() {
    await script("episodes.js");
    side = globalThis.hsnetEpisodes.side;
    part.episode.append(
      ...globalThis.hsnetEpisodes.episodes.map((episode, i) => new Option(episode.name, i)),
      new Option("my own pictures", "own"),
    );
    part.attribution.textContent = globalThis.hsnetEpisodes.attribution;
    await choose();
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    if (!adapter) return;
    part["device-label"].hidden = false;
    // An adapter that only imitates a graphics card is slower than the processor.
    if (!(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter)) part.device.value = "webgpu";
  }
  begin().catch((error) => say(`That did not work: ${error.message}. The page's files are made by \`make book\`.`));
})();
