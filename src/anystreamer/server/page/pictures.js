// The pictures of the next question: chosen or pasted, made smaller, and shown.
//
// They are drawn on a canvas, because the page's policy allows no picture to be loaded. The drawn
// picture is what is sent: it has the points of the file, but not where and by whom it was taken.

const MOST_POINTS = 1024; // of a side: models see no more, and requests are limited
const QUALITY = 0.85;

const element = (id) => document.getElementById(id);
const [list, chosen, add] = ["pictures", "picture-files", "add-picture"].map(element);

let pictures = []; // canvases

/** Let the user choose pictures, or paste them into *message*. *fail* shows an error. */
export function offerPictures(message, fail) {
  add.hidden = false;
  add.addEventListener("click", () => chosen.click());
  chosen.addEventListener("change", async () => {
    await addAll([...chosen.files], fail);
    chosen.value = ""; // the same file can be chosen again
    message.focus();
  });
  message.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (files.length === 0) return;
    event.preventDefault();
    addAll(files, fail);
  });
}

/** Return the pictures for the next question, and remove them from the list. */
export function takePictures() {
  const taken = pictures;
  setPictures([]);
  return taken;
}

export function setPictures(canvases) {
  pictures = canvases;
  list.replaceChildren(...pictures.map(item));
}

/** A picture as a part of a message. */
export const pictureAsPart = (canvas) => ({
  type: "image_url",
  image_url: { url: canvas.toDataURL("image/jpeg", QUALITY) },
});

async function addAll(files, fail) {
  for (const file of files) {
    try {
      setPictures([...pictures, await drawn(file)]);
    } catch {
      fail(`The browser cannot read ${file.name} as a picture.`);
    }
  }
}

async function drawn(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MOST_POINTS / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Picture");
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // behind transparent points
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function item(canvas) {
  const remove = document.createElement("button");
  remove.type = "button";
  remove.className = "quiet small";
  remove.textContent = "Remove picture";
  remove.addEventListener("click", () => {
    setPictures(pictures.filter((each) => each !== canvas));
    add.focus();
  });
  const node = document.createElement("li");
  node.append(canvas, remove);
  return node;
}
