"""What somebody writes who was given an exported network: onnxruntime, Pillow, NumPy and the JSON beside it, nothing else.

python consumer.py model.onnx IMAGE... > answers.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepared(path, steps):
    """An image file as the network takes it, by the steps of the description; and the width and height of the image."""
    for step in steps:
        match step["do"]:
            case "open":
                image = ImageOps.exif_transpose(Image.open(path))
                if image.mode in ("RGBA", "LA") or "transparency" in image.info:
                    layer = image.convert("RGBA")
                    image = Image.new("RGBA", layer.size, "white")
                    image.alpha_composite(layer)
                image = image.convert("RGB")
                whole = image.size
            case "resize_short_side":
                short, long = sorted(image.size)
                if short != step["pixels"]:
                    length = {"int": int, "round": round}[step["longer"]](step["pixels"] * long / short)
                    size = (
                        (step["pixels"], length) if image.width <= image.height else (length, step["pixels"])
                    )
                    image = image.resize(size, Image.Resampling[step["interpolation"].upper()])
            case "resize_to_cover":
                ratio = min(image.height / step["height"], image.width / step["width"])
                size = (round(image.width / ratio), round(image.height / ratio))
                image = image.resize(size, Image.Resampling[step["interpolation"].upper()])
            case "crop_center":
                left = round((image.width - step["width"]) / 2)
                top = round((image.height - step["height"]) / 2)
                image = image.crop((left, top, left + step["width"], top + step["height"]))
            case "divide":
                values = np.asarray(image, dtype=np.float32) / np.float32(step["by"])
            case "normalize":
                values = (values - np.float32(step["mean"])) / np.float32(step["std"])
            case "arrange":
                values = values.transpose(2, 0, 1)[None]
            case other:
                raise ValueError(f"a step that is not known here: {other}")
    return values, whole


def main(file, *images):
    description = json.loads(Path(file).with_suffix(".json").read_text())
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    answers = []
    for path in images:
        given, whole = prepared(path, description["preprocessing"]["steps"])
        (logits,) = session.run([description["output"]["name"]], {description["input"]["name"]: given})
        if "resized_to_image" in description["output"]:
            how = Image.Resampling[description["output"]["resized_to_image"].upper()]
            logits = np.stack([np.asarray(Image.fromarray(one).resize(whole, how)) for one in logits[0]])[
                None
            ]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores = (scores / scores.sum(1, keepdims=True))[0]
        if scores.ndim == 1:  # one label an image
            answers.append({name: float(p) for name, p in zip(description["classes"], scores, strict=True)})
        else:  # a class for every pixel: the share of each, in percent
            said = scores.argmax(0)
            counts = np.bincount(said.ravel(), minlength=len(description["classes"]))
            answers.append(
                dict(zip(description["classes"], (100 * counts / said.size).tolist(), strict=True))
            )
    assert not {"torch", "torchvision", "timm", "deepvit"} & set(sys.modules)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
