"""Paint masks in a running notebook: a canvas, and a workbench of uploads, canvases and answers around it."""

import base64
import io

import anywidget
import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import traitlets
from IPython.display import display
from jaxtyping import Bool, UInt8
from PIL import Image

from hsnet.figures import overlay
from hsnet.pictures import read_image
from hsnet.segmenter import Segmenter
from kit.figures import panels, png_address

LONGEST = 400  # pixels of a picture's longer side on the canvas


class Brush(anywidget.AnyWidget):
    """A picture to paint a mask on, with mouse or finger; or with the arrow keys, which move the brush, and space.

    Args:
        image: uint8 RGB.
    """

    picture = traitlets.Unicode().tag(sync=True)  # as an address that holds a PNG
    painted = traitlets.Unicode().tag(sync=True)  # the same of the mask; opaque where painted
    _esm = """
    export default {
      render({ model, el }) {
        const image = new Image();
        const canvas = document.createElement("canvas");
        const tools = document.createElement("div");
        tools.innerHTML =
          "<label>brush <input type=range min=2 max=60 value=16></label> " +
          "<label><input type=checkbox> erase</label> <button>clear</button>";
        const [size, erase] = tools.querySelectorAll("input");
        canvas.tabIndex = 0;
        canvas.style.cssText = "cursor: crosshair; touch-action: none; max-width: 100%";
        canvas.setAttribute("aria-label", "Paint the object; or move the brush with the arrow keys and press space");
        const mask = document.createElement("canvas");
        let at = null;
        const draw = () => {
          const pen = canvas.getContext("2d");
          pen.drawImage(image, 0, 0);
          pen.globalAlpha = 0.55;
          pen.drawImage(mask, 0, 0);
          pen.globalAlpha = 1;
          if (!at) return;
          pen.beginPath();
          pen.arc(at.x, at.y, size.value / 2, 0, 2 * Math.PI);
          pen.stroke();
        };
        const stroke = (from) => {
          const pen = mask.getContext("2d");
          pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
          pen.strokeStyle = "rgb(255, 64, 0)";
          pen.lineCap = "round";
          pen.lineWidth = size.value;
          pen.beginPath();
          pen.moveTo(from.x, from.y);
          pen.lineTo(at.x, at.y);
          pen.stroke();
          pen.beginPath();  // a line without length draws nothing
          pen.arc(at.x, at.y, size.value / 2, 0, 2 * Math.PI);
          pen.fillStyle = pen.strokeStyle;
          pen.fill();
          draw();
        };
        const send = () => {
          model.set("painted", mask.toDataURL());
          model.save_changes();
        };
        const place = (event) => {
          const frame = canvas.getBoundingClientRect();
          const scale = canvas.width / frame.width;
          return { x: (event.clientX - frame.left) * scale, y: (event.clientY - frame.top) * scale };
        };
        canvas.onpointerdown = (event) => {
          canvas.setPointerCapture(event.pointerId);
          at = place(event);
          stroke(at);
        };
        canvas.onpointermove = (event) => {
          const from = at ?? place(event);
          at = place(event);
          event.buttons & 1 ? stroke(from) : draw();
        };
        canvas.onpointerup = send;
        canvas.onpointerleave = () => {
          at = null;
          draw();
        };
        canvas.onkeydown = (event) => {
          const steps = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4], " ": [0, 0] };
          if (!(event.key in steps)) return;
          event.preventDefault();
          event.stopPropagation();
          at ??= { x: canvas.width / 2, y: canvas.height / 2 };
          at = { x: at.x + steps[event.key][0], y: at.y + steps[event.key][1] };
          if (event.key !== " ") return draw();
          stroke(at);
          send();
        };
        tools.querySelector("button").onclick = () => {
          mask.width = mask.width;
          draw();
          send();
        };
        image.onload = () => {
          for (const one of [canvas, mask]) [one.width, one.height] = [image.naturalWidth, image.naturalHeight];
          draw();
        };
        image.src = model.get("picture");
        el.append(canvas, tools);
      },
    };
    """

    def __init__(self, image: UInt8[np.ndarray, "h w 3"]):
        self.image = image
        small = Image.fromarray(image)
        small.thumbnail((LONGEST, LONGEST))
        super().__init__(picture=png_address(np.asarray(small)))

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """What is painted, at the picture's own size."""
        height, width = self.image.shape[:2]
        if not self.painted:
            return np.zeros((height, width), bool)
        shown = Image.open(io.BytesIO(base64.b64decode(self.painted.split(",")[1]))).convert("RGBA")
        return np.asarray(shown.getchannel("A").resize((width, height), Image.Resampling.NEAREST)) > 127


class Workbench(ipywidgets.VBox):
    """Upload supports, paint their objects, upload queries, and see the answers.

    Args:
        segmenter: fitted with the painted supports when the button is pressed.
        supports: pictures to begin with, uint8 RGB (h, w, 3).
        queries: the same.
    """

    def __init__(self, segmenter: Segmenter, supports: list[np.ndarray] = (), queries: list[np.ndarray] = ()):
        self.segmenter, self.queries = segmenter, list(queries)
        self.brushes = [Brush(image) for image in supports]
        self._wrong = ""
        self.answers: list[np.ndarray] = []  # masks, in the order of the queries
        self._canvases, self._output, self._status = ipywidgets.HBox(), ipywidgets.Output(), ipywidgets.Label()
        self._canvases.layout.flex_flow, self._canvases.layout.grid_gap = "row wrap", "12px"
        uploads = []
        for what, change in (("supports", self._new_supports), ("queries", self._new_queries)):
            upload = ipywidgets.FileUpload(accept="image/*", multiple=True, description=what)
            upload.observe(change, "value")
            uploads.append(upload)
        button = ipywidgets.Button(description="find it in the queries", button_style="primary")
        button.layout.width = "auto"
        button.on_click(lambda _: self.answer())
        super().__init__(
            [ipywidgets.HBox(uploads), self._canvases, ipywidgets.HBox([button, self._status]), self._output]
        )
        self._show()

    def _new_supports(self, change):
        self.brushes = [Brush(image) for image in self._read(change["new"])]
        self._show()

    def _new_queries(self, change):
        self.queries = self._read(change["new"])
        self._show()

    def _read(self, files):
        images, wrong = [], []
        for file in files:
            try:
                images.append(read_image(Image.open(io.BytesIO(file["content"])))[0])
            except (ValueError, OSError):
                wrong.append(file["name"])
        self._wrong = f" Not pictures: {', '.join(wrong)}." if wrong else ""
        return images

    def _show(self):
        self._canvases.children = self.brushes
        k, many = len(self.brushes), len(self.queries)
        counted = f"{k} support{'s'[: k != 1]}, {many} quer{'y' if many == 1 else 'ies'}"
        self._status.value = f"{counted}.{self._wrong}"

    def answer(self) -> None:
        """Fit on what is painted, and show the answers."""
        painted = [brush for brush in self.brushes if brush.mask.any()]
        if not painted or not self.queries:
            self._status.value = "Upload a support and a query, and paint the object in the support."
            return
        try:
            self.segmenter.fit([brush.image for brush in painted], [brush.mask for brush in painted])
            self.answers = [self.segmenter.predict(query) for query in self.queries]
        except ValueError as error:  # an object too small, say
            self._status.value = str(error)
            return
        self._show()
        with self._output:
            self._output.clear_output(wait=True)
            for query, mask in zip(self.queries, self.answers, strict=True):
                words = f"{mask.mean():.0%} of the picture" if mask.any() else "nothing found"
                figure = panels([("query", query), (words, overlay(query, mask))])
                display(figure)
                plt.close(figure)
