// The page that runs HSNet in the reader's browser. Everything it needs lies beside this file, written by
// `PYTHONPATH=book python -m kit.browser`: scripts that hold files in base64, because a page opened from a folder (file://) may load
// scripts but not files. They are loaded when an answer is first wanted. Nothing leaves the browser.
(() => {
  "use strict";
  let side; // of the network's squares
  const LONGEST = 512; // pixels of a picture's longer side as it is shown and painted on
  const MOST = 5; // supports
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
      <label>Images <select data-part="episode"></select></label>
      <span data-part="own" hidden>
        <label>supports, up to ${MOST} <input type="file" accept="image/*" multiple data-part="support-file"></label>
        <label>query <input type="file" accept="image/*" data-part="query-file"></label>
      </span>
    </p>
    <p class="tools" data-part="thumbnails" role="group" aria-label="The support to paint on" hidden></p>
    <div class="pictures">
      <figure>
        <figcaption data-part="support-caption">support: paint the object</figcaption>
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
      <button type="button" data-part="save" disabled>save the mask</button>
      <label data-part="device-label" hidden>compute on <select data-part="device">
        <option value="wasm">the processor</option><option value="webgpu">the graphics card (WebGPU)</option></select></label>
    </p>
    <progress data-part="progress" aria-label="the answer" hidden></progress>
    <p data-part="status" role="status" aria-live="polite"></p>
    <p class="small" data-part="attribution"></p>`;
  const part = Object.fromEntries([...box.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
  const say = (text) => (part.status.textContent = text);

  // One picture: `canvas` holds its pixels, at most LONGEST a side; `features` are kept until it is replaced; `width` and
  // `height` are the file's own. A support has a `mask`, a canvas of its canvas's size, opaque where painted; and of a
  // built-in episode `given`, the true mask.
  part.query.getContext("2d", { willReadFrequently: true });
  const empty = () => ({ canvas: null, features: null });
  let supports = [];
  let support = empty(); // the one that is painted on
  let mask = null; // its own
  let query = empty();
  let answered = null; // the last answer: the mean probability of the supports with the prior
  let several = false; // whether it had more than one support
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
    return { canvas, features: null, width: image.naturalWidth, height: image.naturalHeight };
  }

  function pixels(canvas, width = canvas.width, height = canvas.height) {
    if (canvas.width !== width || canvas.height !== height) {
      const resized = canvasOf(width, height);
      const pen = resized.getContext("2d");
      pen.imageSmoothingQuality = "high";
      pen.drawImage(canvas, 0, 0, width, height);
      canvas = resized;
    }
    return canvas.getContext("2d").getImageData(0, 0, width, height).data;
  }

  function show(canvas, source) {
    canvas.width = source.width;
    canvas.height = source.height;
    canvas.style.setProperty("--shape", source.width / source.height);
    canvas.getContext("2d").drawImage(source, 0, 0);
  }

  const blank = (canvas) => show(canvas, canvasOf(256, 256));

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

  function setSupports(found) {
    supports = found;
    for (const one of supports) one.mask = canvasOf(one.canvas.width, one.canvas.height);
    part.thumbnails.hidden = supports.length < 2;
    part.thumbnails.replaceChildren(
      ...supports.map((one, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.setAttribute("aria-label", `support ${i + 1}`);
        const small = canvasOf(64, 64);
        small.getContext("2d").drawImage(one.canvas, 0, 0, 64, 64);
        button.append(small);
        button.addEventListener("click", () => paintOn(i));
        return button;
      }),
    );
    paintOn(0);
  }

  function paintOn(i) {
    support = supports[i] ?? empty();
    mask = support.mask ?? null;
    part.given.hidden = !support.given;
    [...part.thumbnails.children].forEach((button, j) => button.setAttribute("aria-pressed", i === j));
    part["support-caption"].textContent = supports.length > 1 ? `support ${i + 1} of ${supports.length}: paint the object` : "support: paint the object";
    if (!mask) return blank(part.support);
    brush = { x: mask.width / 2, y: mask.height / 2, shown: false };
    drawSupport();
  }

  function setQuery(found) {
    query = found;
    answered = null;
    part.save.disabled = true;
    if (found.canvas) show(part.query, found.canvas);
    else blank(part.query);
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
    if (mask) drawSupport();
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
  part.brush.addEventListener("input", () => mask && drawSupport());
  part.clear.addEventListener("click", () => {
    if (!mask) return;
    mask.width = mask.width; // empties it
    drawSupport();
  });
  part.given.addEventListener("click", () => {
    mask.width = mask.width;
    mask.getContext("2d").drawImage(support.given, 0, 0);
    drawSupport();
  });

  // A painted mask as the network sees it: nearest, rounding down, as `hsnet.episodes.resize_mask`.
  function resizedMask(mask) {
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

  let network = null; // promise of { features, match, prior, device }

  async function load(device) {
    const start = performance.now();
    part.progress.removeAttribute("value"); // how long it takes is not known
    const name = device === "webgpu" ? "ort-wasm-simd-threaded.asyncify" : "ort-wasm-simd-threaded";
    const [glue, binary, features, match, prior] = await Promise.all([
      bytes(name + ".mjs"),
      bytes(name + ".wasm"),
      bytes("features.onnx"),
      bytes("match.onnx"),
      bytes("prior.onnx"),
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
      prior: await ort.InferenceSession.create(prior, options),
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

  // One tensor from those of several supports.
  function stacked(ort, tensors, shape) {
    const values = new Float32Array(tensors.reduce((sum, tensor) => sum + tensor.length, 0));
    tensors.reduce((at, tensor) => (values.set(tensor, at), at + tensor.length), 0);
    return new ort.Tensor("float32", values, [tensors.length, ...shape]);
  }

  // The mean of the supports' probabilities, with the prototypes' map as a prior: `hsnet.baselines.with_prior`.
  async function withPrior(net, probabilities, small, queried, found) {
    const inputs = { mask: stacked(net.ort, small, [side, side]) };
    for (const name of net.prior.inputNames.filter((name) => name.startsWith("query-"))) {
      const i = +name.split("-")[1];
      inputs[name] = queried[i];
      inputs[`support-${i}`] = stacked(net.ort, found.map((features) => features[i].data), queried[i].dims.slice(1));
    }
    const contrast = (await net.prior.run(inputs)).contrast.data;
    const weight = globalThis.hsnetEpisodes.prior;
    return contrast.map((c, i) => {
      const mean = probabilities.reduce((sum, probability) => sum + probability[i], 0) / probabilities.length;
      const p = Math.min(Math.max(mean, 1e-4), 1 - 1e-4);
      return weight ? 1 / (1 + Math.exp(-Math.log(p / (1 - p)) - weight * c)) : mean;
    });
  }

  const drawn = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

  async function answer() {
    if (!supports.length) return say(query.canvas ? "Choose a support first." : "Choose a support and a query first.");
    if (!query.canvas) return say("Choose a query first.");
    const small = supports.map((one) => resizedMask(one.mask));
    const bare = small.findIndex((values) => !values.some((v) => v));
    if (bare >= 0) {
      paintOn(bare);
      return say(`Paint the object in ${supports.length > 1 ? `support ${bare + 1}` : "the support"} first.`);
    }
    const asked = { supports, query };
    part.run.disabled = true;
    part.progress.hidden = false;
    const start = performance.now();
    try {
      say(network ? "computing …" : "loading the network, then computing: about ten seconds the first time …");
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
      part.progress.max = 2 * asked.supports.length + 1;
      part.progress.value = 0;
      const step = async () => {
        part.progress.value += 1;
        await drawn();
      };
      const queried = await featuresOf(net, asked.query);
      await step();
      const [probabilities, shown] = [[], []];
      for (const [i, one] of asked.supports.entries()) {
        const inputs = { mask: new net.ort.Tensor("float32", small[i], [1, side, side]) };
        queried.forEach((tensor, j) => (inputs[`query-${j}`] = tensor));
        shown.push(await featuresOf(net, one));
        shown[i].forEach((tensor, j) => (inputs[`support-${j}`] = tensor));
        await step();
        probabilities.push((await net.match.run(inputs)).probability.data);
        await step();
      }
      if (asked.query !== query || asked.supports !== supports) return say("Others were chosen meanwhile: press again.");
      answered = await withPrior(net, probabilities, small, queried, shown);
      several = small.length > 1;
      part.save.disabled = false;
      drawAnswer();
      seconds.answer = (performance.now() - start) / 1000;
      globalThis.hsnetTry = {
        probability: Array.from(answered),
        masks: small.map((m) => Array.from(m)),
        seconds: { ...seconds },
        device: net.device,
      };
      say(`${seconds.answer.toFixed(1)} seconds on ${net.device === "webgpu" ? "the graphics card" : "the processor"}.`);
    } catch (error) {
      network = null;
      say(`That did not work: ${error.message}`);
      console.error(error);
    } finally {
      part.run.disabled = false;
      part.progress.hidden = true;
    }
  }

  // The mask at a size: the answer, corners on corners, above the threshold of the weights.
  function found(width, height) {
    const mask = new Uint8Array(width * height);
    const threshold = globalThis.hsnetEpisodes.thresholds[several ? 1 : 0];
    for (let y = 0; y < height; y++) {
      const v = height > 1 ? (y * (side - 1)) / (height - 1) : 0;
      const top = Math.min(Math.floor(v), side - 2);
      for (let x = 0; x < width; x++) {
        const u = width > 1 ? (x * (side - 1)) / (width - 1) : 0;
        const left = Math.min(Math.floor(u), side - 2);
        const at = top * side + left;
        const upper = answered[at] + (u - left) * (answered[at + 1] - answered[at]);
        const lower = answered[at + side] + (u - left) * (answered[at + side + 1] - answered[at + side]);
        mask[y * width + x] = upper + (v - top) * (lower - upper) > threshold ? 1 : 0;
      }
    }
    return mask;
  }

  // A picture of the query's own size, white on the object.
  part.save.addEventListener("click", () => {
    const { width, height } = query;
    const canvas = canvasOf(width, height);
    const pen = canvas.getContext("2d");
    const shown = pen.createImageData(width, height);
    found(width, height).forEach((inside, i) => shown.data.set([255 * inside, 255 * inside, 255 * inside, 255], 4 * i));
    pen.putImageData(shown, 0, 0);
    canvas.toBlob((blob) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "mask.png";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    });
  });

  // As `hsnet.figures.overlay`: the object in its colours with an outline, everything else in pale colours.
  function drawAnswer() {
    show(part.query, query.canvas);
    const { width, height } = part.query;
    const pen = part.query.getContext("2d");
    const shown = pen.getImageData(0, 0, width, height);
    const inside = found(width, height);
    const count = inside.reduce((a, b) => a + b, 0);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const i = y * width + x;
        if (inside[i]) {
          const border =
            (x > 0 && !inside[i - 1]) || (x < width - 1 && !inside[i + 1]) || (y > 0 && !inside[i - width]) || (y < height - 1 && !inside[i + width]);
          if (border) shown.data.set([255, 64, 0], 4 * i);
        } else {
          for (let c = 4 * i; c < 4 * i + 3; c++) shown.data[c] = 0.35 * shown.data[c] + 160;
        }
      }
    pen.putImageData(shown, 0, 0);
    const share = Math.round((100 * count) / inside.length);
    const words = count ? `marked: ${share} % of the image` : "nothing found; paint more of the object";
    part["query-caption"].textContent = `query, ${words}`;
    part.query.setAttribute("aria-label", `Query, ${words}`);
    // Into the window, if it is not there: below the page's header, and no other direction is scrolled.
    const header = 80;
    const { top, bottom } = part.query.closest("figure").getBoundingClientRect();
    if (top < header) scrollBy(0, top - header);
    else if (bottom > innerHeight) scrollBy(0, Math.min(bottom - innerHeight, top - header));
  }

  part.run.addEventListener("click", answer);
  part.device.addEventListener("change", () => (network = null));

  // Pictures

  let chosen = 0;
  async function choose() {
    const own = part.episode.value === "own";
    const turn = ++chosen;
    part.own.hidden = !own;
    part.attribution.hidden = own;
    if (own) {
      for (const name of ["support-file", "query-file"]) part[name].value = "";
      setSupports([]);
      setQuery(empty());
      return say("Choose supports, which show the object, and a query, in which to find it.");
    }
    const episode = globalThis.hsnetEpisodes.episodes[+part.episode.value];
    const [first, truth, second] = await Promise.all([picture(episode.support), picture(episode.mask), picture(episode.query)]);
    if (turn !== chosen) return; // another one was chosen meanwhile
    const marked = truth.canvas.getContext("2d").getImageData(0, 0, truth.canvas.width, truth.canvas.height);
    for (let i = 0; i < marked.data.length; i += 4) marked.data[i + 3] = marked.data[i] > 127 ? 255 : 0;
    truth.canvas.getContext("2d").putImageData(marked, 0, 0);
    setSupports([{ ...first, given: truth.canvas }]);
    if (query.source !== episode.query) setQuery({ ...second, source: episode.query }); // else its features are kept
    else setQuery(query);
    part.attribution.textContent = episode.attribution;
    box.dataset.shown = part.episode.value;
    say("Paint over the object in the support, then let the network find it in the query.");
  }
  part.episode.addEventListener("change", choose);

  for (const [name, set] of [["support-file", setSupports], ["query-file", ([found]) => setQuery(found)]])
    part[name].addEventListener("change", async () => {
      const found = [];
      const turn = chosen;
      const wanted = [...part[name].files];
      for (const file of wanted.slice(0, MOST)) {
        const address = URL.createObjectURL(file);
        try {
          found.push(await picture(address));
        } catch {
          return say(`${file.name} is not an image that this browser can read.`);
        } finally {
          URL.revokeObjectURL(address);
        }
      }
      if (!found.length || turn !== chosen) return;
      set(found);
      const left = wanted.length - found.length;
      const next = !supports.length ? "Choose a support." : !query.canvas ? "Paint the object, and choose a query." : "Paint the object, then press the button.";
      say(`${left ? `Only the first ${MOST} are taken. ` : ""}Images stay in this browser. ${next}`);
    });

  async function begin() {
    await script("episodes.js");
    side = globalThis.hsnetEpisodes.side;
    part.episode.append(
      ...globalThis.hsnetEpisodes.episodes.map((episode, i) => new Option(episode.name, i)),
      new Option("my own images", "own"),
    );
    await choose();
    const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
    if (!adapter) return;
    part["device-label"].hidden = false;
    // An adapter that only imitates a graphics card is slower than the processor.
    if (!(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter)) part.device.value = "webgpu";
  }
  begin().catch((error) => say(`That did not work: ${error.message}. The page's files are made by \`make book\`.`));
})();
